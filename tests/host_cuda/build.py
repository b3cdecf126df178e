"""Fetch CuPy, NVRTC and CUDA's headers with pip, and compile the emulated GPU, once, into the user's cache folder.

    paths = build()        .site for sys.path; .runtime, .device and .kernels hold compiled files; raises Unavailable

The folders of the device and the kernels are named by a hash of their sources, so that changed sources get new folders.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
CUPY = "14.2.0"
WHEELS = [f"cupy-cuda13x=={CUPY}", "cuda-pathfinder==1.*", "nvidia-cuda-nvrtc==13.*", "nvidia-cuda-runtime==13.*"]
TOOLS = ["Cython==3.2.4", "nvidia-cuda-crt==13.*", "nvidia-cuda-profiler-api==13.*"]       # needed only to build
EMPTY = ["libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcusparse.so.12", "libcufft.so.12"]  # CuPy loads them
DEVICE, KERNELS = ["runtime.cpp", "driver.cpp", "cublas.cpp", "device.h"], ["kernel.h", "complex.cuh", "cub.cuh", "kernels.py"]
COMPILE = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-w"]


class Unavailable(RuntimeError):
    """This machine cannot provide the emulated GPU; the message gives the reason."""


def build() -> SimpleNamespace:
    """The folders of the emulated GPU, which the first call fills."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise Unavailable("the emulated GPU needs Linux on x86-64")
    if shutil.which("g++") is None:
        raise Unavailable("the emulated GPU needs g++ to be compiled")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicl-host-cuda"
    wheels = cache / f"cupy-{CUPY}-{sysconfig.get_config_var('SOABI')}"
    paths = SimpleNamespace(**{name: wheels / name for name in ("site", "tools", "source", "runtime")},
                            device=wheels / f"device-{_hash(DEVICE)}", kernels=wheels / f"kernels-{_hash(KERNELS)}")
    try:
        wheels.mkdir(parents=True, exist_ok=True)
        with (wheels / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)                       # all pytest-xdist workers call this
            _once(paths.site, lambda to: _pip("install", "--target", to, *WHEELS))
            _once(paths.tools, lambda to: _pip("install", "--target", to, *TOOLS))
            _once(paths.source, _unpack_source)
            _once(paths.runtime, lambda to: _compile_cupys_runtime(paths, to))
            _once(paths.device, lambda to: _compile_device(paths, to))
            _once(paths.kernels, lambda to: _compile_header(paths, to))
    except OSError as error:
        raise Unavailable(f"the emulated GPU cannot be kept in {cache}: {error}") from error
    return paths


def _hash(names):
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in names)).hexdigest()[:12]


def _once(folder, make):
    """make(folder) unless the folder exists. It appears only when it is complete."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        make(Path(temporary) / "new")
        (Path(temporary) / "new").rename(folder)


def _pip(command, *arguments):
    _run([sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-deps", *arguments],
         "pip could not fetch CuPy and NVIDIA's compiler")


def _unpack_source(to):
    """CuPy's own source distribution; CUPY_INSTALL_USE_STUB lets pip read its metadata without CUDA."""
    with tempfile.TemporaryDirectory() as folder:
        with _environment(CUPY_INSTALL_USE_STUB="1"):
            _pip("download", "--no-binary", "cupy", "--dest", folder, f"cupy=={CUPY}")
        archive, = Path(folder).glob("cupy-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(to, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


@contextlib.contextmanager
def _environment(**variables):
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _compile_cupys_runtime(paths, to):
    """Compile CuPy's runtime.pyx again, with the symbols of runtime.cpp instead of NVIDIA's runtime."""
    to.mkdir()
    source = paths.source / f"cupy-{CUPY}"
    translate = ("import sys; sys.path.insert(0, sys.argv[1]);"
                 "from Cython.Compiler.Main import compile, CompilationOptions;"
                 "import Cython;"
                 "compile(['cupy_backends/cuda/api/runtime.pyx'], CompilationOptions(cplus=True, language_level=3,"
                 "    output_file=sys.argv[2], include_path=['.'], compiler_directives={'embedsignature': True,"
                 "    'c_api_binop_methods': True, 'binding': False, 'freethreading_compatible': True,"
                 "    'warn.deprecated.IF': False},"
                 "    compile_time_env={'CUPY_USE_CUDA_PYTHON': False, 'CUPY_CUFFT_STATIC': False, 'CUPY_HIP_VERSION': 0,"
                 "    'CUPY_CYTHON_VERSION': Cython.__version__, 'CUPY_CUDA_VERSION': 13000}))")
    _run([sys.executable, "-c", translate, paths.tools, to / "runtime.cpp"], "Cython could not translate CuPy's runtime.pyx",
         cwd=source)
    _run([*COMPILE, "-O1", to / "runtime.cpp", f"-I{source}/cupy_backends/cuda/api", *_includes(paths),
          f"-I{sysconfig.get_paths()['include']}", "-o", to / f"runtime{sysconfig.get_config_var('EXT_SUFFIX')}"],
         "g++ could not compile CuPy's runtime.pyx")


def _includes(paths):
    """CUDA's headers; the second folder has those that only a C++ compiler needs."""
    return [f"-I{folder}/nvidia/cu13/include" for folder in (paths.site, paths.tools)]


def _compile_device(paths, to):
    """Compile libhostcuda.so, and empty libraries with the names that CuPy's modules load."""
    to.mkdir()
    sources = [HERE / name for name in DEVICE if name.endswith(".cpp")]
    _run([*COMPILE, "-U_FORTIFY_SOURCE", *sources, *_includes(paths), "-ldl", "-Wl,-soname,libhostcuda.so", "-o", to / "libhostcuda.so"],
         "g++ could not compile the emulated GPU")
    for name in EMPTY:                                  # each depends on libhostcuda.so, which has the functions
        _run([*COMPILE, "-Wl,--no-as-needed", "-x", "c++", "/dev/null", "-x", "none", to / "libhostcuda.so",
              f"-Wl,-soname,{name}", "-o", to / name], f"g++ could not compile {name}")


def _compile_header(paths, to):
    """Precompile kernel.h, which takes most of the time of compiling a kernel. CuPy's kernel cache is beside it."""
    (to / "include" / "cupy").mkdir(parents=True)
    shutil.copy(HERE / "kernel.h", to / "include")
    shutil.copy(HERE / "complex.cuh", to / "include" / "cupy")
    (to / "include" / "cub" / "block").mkdir(parents=True)
    for name in ("block_load.cuh", "block_reduce.cuh"):
        shutil.copy(HERE / "cub.cuh", to / "include" / "cub" / "block" / name)
    (to / "include" / "nv").symlink_to(paths.site / "cupy/_core/include/cupy/_cccl/libcudacxx/nv")
    _run([*kernel_command(paths, to), "-x", "c++-header", to / "include" / "kernel.h", "-o",
          to / "include" / "kernel.h.gch"], "g++ could not compile kernel.h")


def kernel_command(paths, kernels):
    """The g++ command that compiles a kernel. With -ffp-contract=off, a * b + c is rounded twice, as in NumPy."""
    return ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fpermissive", "-fPIC", "-w", f"-I{kernels}/include",
            f"-I{paths.site}/cupy/_core/include", *_includes(paths)]


def _run(command, what, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    if done.returncode:
        raise Unavailable(f"{what}: " + "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:]))
