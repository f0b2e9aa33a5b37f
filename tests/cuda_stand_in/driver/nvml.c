/* Stand-in for NVIDIA's libnvidia-ml.so.1: one card, of compute capability 9.0 and 80 GB. vLLM asks
   it what to run on. */
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;

static const unsigned long long TOTAL = 85520809984ull, FREE = 85000000000ull;

int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) { *handle = (void *)1; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    *major = 9;
    *minor = 0;
    return 0;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    strncpy(name, "NVIDIA H100 80GB HBM3 (stand-in)", length);
    return 0;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    strncpy(uuid, "GPU-00000000-0000-0000-0000-000000000000", length);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    memory->total = TOTAL;
    memory->free = FREE;
    memory->used = TOTAL - FREE;
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2_t *memory) {
    memory->total = TOTAL;
    memory->free = FREE;
    memory->used = TOTAL - FREE;
    memory->reserved = 0;
    return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    strncpy(version, "580.159.04", length);
    return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
const char *nvmlErrorString(int result) { return result ? "stand-in" : "ok"; }
