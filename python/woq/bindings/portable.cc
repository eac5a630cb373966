// SPDX-License-Identifier: Apache-2.0
// What lets a wheel that was built on a new system run on every system from glibc 2.28 on
// (WOQ_PORTABLE, `make wheel`). Two things stand in its way.
//
// First, the linker binds a symbol to its newest version in the glibc at hand. The few functions
// that this concerns are redirected (option --wrap, cmake/WoqPython.cmake) to the version that
// every glibc on x86-64 has. tests/python/test_packaging.py fails where another function needs a
// line here.
//
// Second, a manylinux wheel may not need libgomp.so.1, and may not bring a copy under another name
// either: that would be a second thread pool beside torch's. So the OpenMP functions that the
// compiler calls are defined here, and call the libgomp.so.1 that the process has, or loads now.
#include "portable.h"

#if !defined(WOQ_PORTABLE)

namespace woq::python {
void find_openmp() {}
}  // namespace woq::python

#else

#include <dlfcn.h>
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <cstdlib>
#include <string>

#if !defined(__x86_64__) || !defined(__GLIBC__)
#error "WOQ_PORTABLE knows the symbol versions of glibc on x86-64 only"
#endif

extern "C" {

// 2.29 gave exp, log and pow versions without the old error handling; the values are the same.
double woq_old_exp(double);
double woq_old_log(double);
double woq_old_pow(double, double);
__asm__(".symver woq_old_exp, exp@GLIBC_2.2.5");
__asm__(".symver woq_old_log, log@GLIBC_2.2.5");
__asm__(".symver woq_old_pow, pow@GLIBC_2.2.5");
double __wrap_exp(double x) {
  return woq_old_exp(x);
}
double __wrap_log(double x) {
  return woq_old_log(x);
}
double __wrap_pow(double x, double y) {
  return woq_old_pow(x, y);
}

// 2.34 moved libpthread and libdl into libc, and with it gave their functions new versions.
void* woq_old_dlopen(const char*, int);
void* woq_old_dlsym(void*, const char*);
char* woq_old_dlerror();
__asm__(".symver woq_old_dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver woq_old_dlsym, dlsym@GLIBC_2.2.5");
__asm__(".symver woq_old_dlerror, dlerror@GLIBC_2.2.5");
void* __wrap_dlopen(const char* file, int mode) {
  return woq_old_dlopen(file, mode);
}
void* __wrap_dlsym(void* library, const char* name) {
  return woq_old_dlsym(library, name);
}
char* __wrap_dlerror() {
  return woq_old_dlerror();
}
int woq_old_pthread_once(pthread_once_t*, void (*)());
int woq_old_pthread_key_create(pthread_key_t*, void (*)(void*));
__asm__(".symver woq_old_pthread_once, pthread_once@GLIBC_2.2.5");
__asm__(".symver woq_old_pthread_key_create, pthread_key_create@GLIBC_2.2.5");
int __wrap_pthread_once(pthread_once_t* once, void (*function)()) {
  return woq_old_pthread_once(once, function);
}
int __wrap___pthread_key_create(pthread_key_t* key, void (*destroy)(void*)) {
  return woq_old_pthread_key_create(key, destroy);
}

// Before 2.33 fstat was an inline call of this function, whose first argument is the version of
// struct stat: 1 on x86-64.
int woq_old_fxstat(int, int, struct stat*);
__asm__(".symver woq_old_fxstat, __fxstat@GLIBC_2.2.5");
int __wrap_fstat(int file, struct stat* status) {
  return woq_old_fxstat(1, file, status);
}

// 2.36 added arc4random, by which libstdc++ implements std::random_device.
uint32_t __wrap_arc4random() {
  uint32_t value = 0;
  if (getrandom(&value, sizeof value, 0) != static_cast<ssize_t>(sizeof value)) std::abort();
  return value;
}

// 2.32 added this flag, by which libstdc++ saves atomic operations while there is one thread. A
// copy of our own that never changes means: always atomic.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

}  // extern "C"

namespace {

// libgomp's functions by their own types; all that GCC calls for this code.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  void (*barrier)();
  int (*num_threads)();
  int (*thread_num)();
  int (*max_threads)();
  void (*set_num_threads)(int);
  int (*num_procs)();
  int (*level)();
};
OpenMp openmp{};

template <class Function>
void look_up(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr)
    throw pybind11::import_error(std::string("libgomp.so.1 has no function ") + name);
}

}  // namespace

extern "C" {

#define WOQ_HIDDEN __attribute__((visibility("hidden")))
WOQ_HIDDEN void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  openmp.parallel(body, data, threads, flags);
}
WOQ_HIDDEN void GOMP_barrier() {
  openmp.barrier();
}
WOQ_HIDDEN int omp_get_num_threads() {
  return openmp.num_threads();
}
WOQ_HIDDEN int omp_get_thread_num() {
  return openmp.thread_num();
}
WOQ_HIDDEN int omp_get_max_threads() {
  return openmp.max_threads();
}
WOQ_HIDDEN void omp_set_num_threads(int threads) {
  openmp.set_num_threads(threads);
}
WOQ_HIDDEN int omp_get_num_procs() {
  return openmp.num_procs();
}
WOQ_HIDDEN int omp_get_level() {
  return openmp.level();
}
#undef WOQ_HIDDEN

}  // extern "C"

namespace woq::python {

void find_openmp() {
  // By its SONAME: a copy that torch has loaded is the one that is found.
  void* const library = dlopen("libgomp.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw pybind11::import_error(dlerror());
  look_up(library, "GOMP_parallel", openmp.parallel);
  look_up(library, "GOMP_barrier", openmp.barrier);
  look_up(library, "omp_get_num_threads", openmp.num_threads);
  look_up(library, "omp_get_thread_num", openmp.thread_num);
  look_up(library, "omp_get_max_threads", openmp.max_threads);
  look_up(library, "omp_set_num_threads", openmp.set_num_threads);
  look_up(library, "omp_get_num_procs", openmp.num_procs);
  look_up(library, "omp_get_level", openmp.level);
}

}  // namespace woq::python

#endif
