/* Loaded before the C library by tests/it/failing_disk/mod.rs: a disk that fails. While there is a file of the name in FAIL_WRITES,
   whatever is written below the folder in FAIL_BELOW, or is to reach its disk, is an I/O error; FAIL_READS likewise. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int fd, const char *when) {
    const char *flag = getenv(when), *below = getenv("FAIL_BELOW");
    char name[64], path[PATH_MAX];
    if (!flag || !below || access(flag, F_OK) != 0) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, below, strlen(below)) != 0) return 0;
    errno = EIO;
    return 1;
}

#define FAILING(when, result, name, parameters, ...)                                                                   \
    result name parameters {                                                                                           \
        static result(*next) parameters;                                                                               \
        if (!next) next = (result(*) parameters)dlsym(RTLD_NEXT, #name);                                               \
        return fails(fd, when) ? -1 : next(__VA_ARGS__);                                                               \
    }

FAILING("FAIL_WRITES", ssize_t, write, (int fd, const void *from, size_t size), fd, from, size)
FAILING("FAIL_WRITES", ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), fd, from, size, at)
FAILING("FAIL_WRITES", int, fsync, (int fd), fd)
FAILING("FAIL_WRITES", int, fdatasync, (int fd), fd)
FAILING("FAIL_WRITES", int, sync_file_range, (int fd, off64_t at, off64_t size, unsigned flags), fd, at, size, flags)
FAILING("FAIL_READS", ssize_t, pread64, (int fd, void *to, size_t size, off64_t at), fd, to, size, at)
