/* Stand-in for NVIDIA's libcuda.so.1: the symbols that CUDA builds of torch and vLLM need to load. It
   has no device: whatever would reach one fails. */
enum { SUCCESS = 0, NO_DEVICE = 100, NOT_FOUND = 500 };

int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuGetErrorString(int error, const char **text) { *text = "stand-in: no device"; return SUCCESS; }
int cuGetProcAddress_v2(void) { return NOT_FOUND; }

#define WITHOUT_DEVICE(name) int name(void) { return NO_DEVICE; }
WITHOUT_DEVICE(cuInit)
WITHOUT_DEVICE(cuCtxGetCurrent)
WITHOUT_DEVICE(cuCtxSetCurrent)
WITHOUT_DEVICE(cuDeviceGetAttribute)
WITHOUT_DEVICE(cuDevicePrimaryCtxRetain)
WITHOUT_DEVICE(cuMemAddressFree)
WITHOUT_DEVICE(cuMemAddressReserve)
WITHOUT_DEVICE(cuMemCreate)
WITHOUT_DEVICE(cuMemGetAllocationGranularity)
WITHOUT_DEVICE(cuMemMap)
WITHOUT_DEVICE(cuMemRelease)
WITHOUT_DEVICE(cuMemSetAccess)
WITHOUT_DEVICE(cuMemUnmap)
WITHOUT_DEVICE(cuPointerGetAttribute)
WITHOUT_DEVICE(cuTensorMapEncodeTiled)
