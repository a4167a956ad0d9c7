/* Calls of the system that fail, for those of files under one folder: loaded before all else
   (LD_PRELOAD).

   faults_arm(root, kind, at, error, on): call number `at` fails with `error`, and all behind it if
   `on`. kind 0: calls that need room; kind 1: calls that move bytes. faults_seen(): how many there
   were. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOM, BYTES };

static char root[4096];
static int armed, wanted, on, error;
static long at;
static atomic_long seen;

void faults_arm(const char* folder, int kind, long number, int code, int stays) {
  strncpy(root, folder, sizeof root - 1);
  wanted = kind, at = number, error = code, on = stays;
  seen = 0;
  armed = 1;
}

long faults_seen(void) {
  armed = 0;
  return seen;
}

static int fails(const char* path) {
  if (strncmp(path, root, strlen(root))) return 0;
  long number = atomic_fetch_add(&seen, 1);
  if (at < 0 || (on ? number < at : number != at)) return 0;
  errno = error;
  return 1;
}

static int at_path(const char* path) { return armed && wanted == ROOM && fails(path); }

static int at_handle(int handle) {
  char link[64], path[4096];
  if (!armed) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(path);
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int handle, const void* data, size_t size) {
  return at_handle(handle) ? -1 : REAL(write)(handle, data, size);
}

ssize_t read(int handle, void* data, size_t size) {
  return wanted == BYTES && at_handle(handle) ? -1 : REAL(read)(handle, data, size);
}

int fsync(int handle) { return wanted == BYTES && at_handle(handle) ? -1 : REAL(fsync)(handle); }

int ftruncate64(int handle, off64_t size) {
  return wanted == ROOM && at_handle(handle) ? -1 : REAL(ftruncate64)(handle, size);
}

int mkdir(const char* path, mode_t mode) { return at_path(path) ? -1 : REAL(mkdir)(path, mode); }

int rename(const char* from, const char* to) { return at_path(to) ? -1 : REAL(rename)(from, to); }

static int opened(int (*real)(const char*, int, ...), const char* path, int flags, va_list rest) {
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  return flags & O_CREAT && at_path(path) ? -1 : real(path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int handle = opened(REAL(open64), path, flags, rest);
  va_end(rest);
  return handle;
}

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int handle = opened(REAL(open), path, flags, rest);
  va_end(rest);
  return handle;
}
