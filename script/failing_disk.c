/* Makes the disk of one sheep fail: preloaded into a sheep that uses threads for its disk (SHEEP_IO=threads).
 *
 * The directory $FAULTS says what goes wrong, by the files in it:
 *   fail-writes    every write and sync ends with EIO
 *   fail-reads     every read ends with EIO
 *   hang           every write and sync takes until this file is gone
 * and is told what did, a byte for each time: hit-writes, hit-reads, hit-hang. Only the store's file "objects" is concerned. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_wanted(const char *fault) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("FAULTS"), fault);
    return access(path, F_OK) == 0;
}

static void tell(const char *hit) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("FAULTS"), hit);
    int file = open(path, O_CREAT | O_WRONLY | O_APPEND, 0600);
    if (write(file, "x", 1) != 1) abort();
    close(file);
}

static int is_disk(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    return len >= 8 && memcmp(path + len - 8, "/objects", 8) == 0;
}

static int write_fails(int fd) {
    if (!is_disk(fd)) return 0;
    while (is_wanted("hang")) {
        tell("hit-hang");
        usleep(20000);
    }
    if (!is_wanted("fail-writes")) return 0;
    tell("hit-writes");
    errno = EIO;
    return 1;
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags) {
    return write_fails(fd) ? -1 : syscall(SYS_pwritev2, fd, iov, count, offset, 0, flags);
}
ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags) {
    return pwritev2(fd, iov, count, offset, flags);
}
int fdatasync(int fd) { return write_fails(fd) ? -1 : syscall(SYS_fdatasync, fd); }

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset) {
    if (is_disk(fd) && is_wanted("fail-reads")) {
        tell("hit-reads");
        errno = EIO;
        return -1;
    }
    return syscall(SYS_preadv, fd, iov, count, offset, 0);
}
ssize_t preadv64(int fd, const struct iovec *iov, int count, off_t offset) { return preadv(fd, iov, count, offset); }
