/* dipengine: what a host includes first. Status codes, version, instruction set, thread pool.
 *
 * C-compatible. Ops live in <dipengine/ops/NAME.h>: each takes a params struct that begins with `size_t struct_size`
 * (set it to sizeof the struct; anything else is refused), allocates nothing and returns a status. On failure
 * dipengine_last_error() holds one sentence that says what is wrong.
 */
#ifndef DIPENGINE_DIPENGINE_H_
#define DIPENGINE_DIPENGINE_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(DIPENGINE_BUILDING_SHARED)
#define DIPENGINE_API __declspec(dllexport)
#else
#define DIPENGINE_API
#endif
#else
#define DIPENGINE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the binary interface, and of the library's soname (libdipengine.so.2). Between two releases it grows by one as
 * soon as a struct gains, loses or moves a field, a function changes its arguments, or a value its meaning; a new function or a
 * new value alone leaves it. A host that links runs with the library of its own version only, which the soname sees to. One that
 * loads the library by name (dlopen) compares dipengine_abi_version() with this macro before any other call and does without the
 * library where they differ; `struct_size` refuses, call by call, what slips through. */
#define DIPENGINE_ABI_VERSION 2

typedef enum dipengine_status {
  DIPENGINE_OK = 0,
  DIPENGINE_INVALID_ARGUMENT = 1, /* a shape, stride, pointer or value is not usable */
  DIPENGINE_STRUCT_SIZE = 2,      /* the params struct is of another ABI version */
  DIPENGINE_UNSUPPORTED = 3,      /* valid, but no kernel of this build does it */
  DIPENGINE_OUT_OF_RESOURCES = 4, /* memory or threads could not be had */
  DIPENGINE_DEVICE_FAILED = 5     /* a GPU gave up; this process can use it no more */
} dipengine_status;

/* Element types. bfloat16 is stored as the upper half of a float32. */
typedef enum dipengine_dtype {
  DIPENGINE_FLOAT32 = 0,
  DIPENGINE_BFLOAT16 = 1,
  DIPENGINE_FLOAT64 = 2, /* portable kernels only: for gradient checks */
  DIPENGINE_UINT8 = 3,
  DIPENGINE_UINT16 = 4 /* painted images alone */
} dipengine_dtype;

/* The ABI version that the library was built with; compare it with DIPENGINE_ABI_VERSION. */
DIPENGINE_API int32_t dipengine_abi_version(void);

/* "MAJOR.MINOR.PATCH" of the library. */
DIPENGINE_API const char* dipengine_version_string(void);

/* A short name of a status, never NULL. */
DIPENGINE_API const char* dipengine_status_string(dipengine_status status);

/* The sentence of this thread's last failure ("" before any); valid until this thread's next call. */
DIPENGINE_API const char* dipengine_last_error(void);

/* The instruction set in use: "portable", "avx2", "avx512", "avx512bf16" or "avx512fp16". It is the one that the environment variable
 * DIPENGINE_ISA names (read once), or the highest below it that the CPU and the operating system have; without the
 * variable the fastest: the highest, but avx512 on Intel without float16, as bfloat16 products are slower than float32 ones there.
 * NULL, with a last error, where the variable holds another word; ops then fail the same way. An op without kernels for a set uses
 * the next lower. */
DIPENGINE_API const char* dipengine_cpu_isa(void);

/* 1 where the CPU and the operating system have the instruction set, used or not; else 0. */
DIPENGINE_API int32_t dipengine_cpu_has_isa(const char* name);

/* 1 where fits are faster with bfloat16 images on the set in use; else 0. */
DIPENGINE_API int32_t dipengine_cpu_bfloat16(void);

/* Cap the instruction set of the process anew: one of the names above, or NULL for the choice of dipengine_cpu_isa.
 * Not to be called while ops run. Results are the same bits on every set, convolutions, blur
 * and norms excepted: theirs are the same at any number of threads, but each set has its own. */
DIPENGINE_API dipengine_status dipengine_set_cpu_isa(const char* name);

typedef struct dipengine_build_info {
  size_t struct_size;
  const char* compiler;         /* "GNU 12.2.0" */
  const char* build_type;       /* "Release" */
  const char* instruction_sets; /* those compiled in, separated by spaces */
  const char* cuda;             /* what CUDA kernels there are, in words */
} dipengine_build_info;

/* Fill `info` (its struct_size set by the caller); the strings live as long as the library. */
DIPENGINE_API dipengine_status dipengine_get_build_info(dipengine_build_info* info);

/* The CUDA sources of this version, built in or not: "NAME HASH SILICON" each, with a bar between them. HASH is over source,
 * headers and flags; SILICON is the hash that it had when it last ran on a GPU with its tests passing, or "none". */
DIPENGINE_API const char* dipengine_cuda_manifest(void);

/* CUDA devices, in *count. Where the kernels can run on none: 0 and DIPENGINE_UNSUPPORTED, and the last error says what is missing:
 * the kernels, a driver, or a device of compute capability 8.0 or more. */
DIPENGINE_API dipengine_status dipengine_cuda_device_count(int32_t* count);

/* Bytes of a device's memory that can be had, by anybody, and all of them. Takes a context on the device. */
DIPENGINE_API dipengine_status dipengine_cuda_device_memory(int32_t device, size_t* free_bytes, size_t* total_bytes);

/* A device's name ("NVIDIA H200"), cut off where name[bytes] has no room for all of it. Takes no context. */
DIPENGINE_API dipengine_status dipengine_cuda_device_name(int32_t device, char* name, size_t bytes);

/* A fixed set of threads for ops. The calling thread works too, so a pool of n starts n - 1 threads. Results never
 * depend on n. Where several threads share one pool, one job at a time is spread and the others run on their callers. */
typedef struct dipengine_pool dipengine_pool;

/* Create a pool of `threads` (1 to 1024) in *pool. */
DIPENGINE_API dipengine_status dipengine_pool_create(int32_t threads, dipengine_pool** pool);

/* Join the threads and free the pool; NULL is allowed. No op may be running on it. */
DIPENGINE_API void dipengine_pool_destroy(dipengine_pool* pool);

/* Threads of the pool, the caller counted; 1 for NULL, which ops take for "the calling thread alone". */
DIPENGINE_API int32_t dipengine_pool_size(const dipengine_pool* pool);

#ifdef __cplusplus
}
#endif

#endif
