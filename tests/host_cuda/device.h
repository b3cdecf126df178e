// What the parts of the emulated GPU share: every operation on its memory goes through submit().
#pragma once
#include <functional>
#include <mutex>
#include <string>

typedef void* Pointer;

struct Counts {                          // as device.py reads them
  long launches, products, device_copies, to_host, to_device, synchronisations, allocations, graph_launches;
};
extern Counts counts;
extern std::recursive_mutex device_lock; // one operation at a time
extern bool computing;                   // false: operations are counted but not done, to measure the host's share

enum Mode { ONE_THREAD, EACH_THREAD, FIBERS };       // see kernels.py

enum Error { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_IMPLICIT = 906,
             ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719 };

// Do work on the device, or add it to the graph if the stream is being captured. what() describes it for a recording.
int submit(Pointer stream, const std::function<std::string()>& what, const std::function<int()>& work);

bool capturing(Pointer stream);          // whether submit() would only take notes
int synchronise(Pointer stream);         // counted; an error while a stream is being captured
