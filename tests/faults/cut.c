/* Loaded by LD_PRELOAD: counts the calls that change a file system, and kills the process group at the n-th.

   All processes that inherit it count in one page, which the file named by CUT_STATE holds (struct state; tests/faults/
   cuts.py writes it). A write at which the end comes is done by half: a power cut does not wait for page boundaries.
   With `log` the calls are written, in order, to the file named by CUT_LOG; with `now` the clock says that. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

struct state {
    uint64_t armed; /* 0: nothing is counted */
    uint64_t limit; /* the call to die at; 0: none */
    uint64_t log;
    uint64_t now; /* seconds since 1970; 0: the real time */
    uint64_t count;
};

static struct state idle, *state = &idle;
static int log_fd = -1;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("CUT_STATE"), *log = getenv("CUT_LOG");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0) : -1;
    if (fd < 0)
        return;
    void *page = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED)
        state = page;
    if (log)
        log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
}

static void *next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        abort();
    return found;
}

#define NEXT(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)next(#name)

/* The place of a file descriptor, or of a name beneath one, as text. */
static const char *place(int at, const char *path, char *buffer, size_t size)
{
    char link[64];
    size_t length = 0;
    if (!path || path[0] != '/') {
        if (at == AT_FDCWD)
            strcpy(link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t got = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, size - 1);
        length = got > 0 ? (size_t)got : 0;
    }
    buffer[length] = 0;
    if (path)
        snprintf(buffer + length, size - length, "%s%s", length ? "/" : "", path);
    return buffer;
}

static void record(const char *call, int at, const char *path, int to, const char *target)
{
    if (!state->armed || !state->log || log_fd < 0)
        return;
    char first[4096], second[4096] = "", line[9000];
    place(at, path, first, sizeof first);
    if (target)
        place(to, target, second, sizeof second);
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", call, first, second);
    syscall(SYS_write, log_fd, line, (size_t)length);
}

/* Tell whether this call is the last one. */
static int counted(void)
{
    return state->armed && __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST) == state->limit;
}

static void die(void)
{
    syscall(SYS_kill, 0, SIGKILL);
    for (;;)
        pause();
}

static void change(const char *call, int at, const char *path, int to, const char *target)
{
    int saved = errno;
    record(call, at, path, to, target);
    if (counted())
        die();
    errno = saved;
}

/* What a command prints changes nothing. */
static int regular(int fd)
{
    struct stat found;
    return state->armed && fd > 2 && fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

#define WRITING (O_CREAT | O_TRUNC)
#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { MODE(flags) NEXT(name); \
        if (flags & WRITING) change("open", AT_FDCWD, path, 0, NULL); \
        return real(path, flags, mode); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { MODE(flags) NEXT(name); \
        if (flags & WRITING) change("open", at, path, 0, NULL); \
        return real(at, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { NEXT(name); \
        if (mode[0] == 'w') change("open", AT_FDCWD, path, 0, NULL); \
        return real(path, mode); }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size)
{
    NEXT(write);
    if (!regular(fd))
        return real(fd, data, size);
    record("write", fd, NULL, 0, NULL);
    if (counted()) {
        real(fd, data, size / 2);
        die();
    }
    return real(fd, data, size);
}

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { NEXT(name); \
        record("write", fd, NULL, 0, NULL); \
        if (counted()) { real(fd, data, size / 2, offset); die(); } \
        return real(fd, data, size, offset); }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SENDFILE(name, offset_type) \
    ssize_t name(int to, int from, offset_type *offset, size_t size) { NEXT(name); \
        if (regular(to)) { record("write", to, NULL, 0, NULL); if (counted()) { real(to, from, offset, size / 2); die(); } } \
        return real(to, from, offset, size); }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t size, unsigned flags)
{
    NEXT(copy_file_range);
    record("write", to, NULL, 0, NULL);
    if (counted()) {
        real(from, in, to, out, size / 2, flags);
        die();
    }
    return real(from, in, to, out, size, flags);
}

int rename(const char *a, const char *b) { NEXT(rename); change("rename", AT_FDCWD, a, AT_FDCWD, b); return real(a, b); }
int renameat(int x, const char *a, int y, const char *b) { NEXT(renameat); change("rename", x, a, y, b); return real(x, a, y, b); }
int renameat2(int x, const char *a, int y, const char *b, unsigned f) { NEXT(renameat2); change("rename", x, a, y, b); return real(x, a, y, b, f); }
int link(const char *a, const char *b) { NEXT(link); change("link", AT_FDCWD, a, AT_FDCWD, b); return real(a, b); }
int linkat(int x, const char *a, int y, const char *b, int f) { NEXT(linkat); change("link", x, a, y, b); return real(x, a, y, b, f); }
int symlink(const char *a, const char *b) { NEXT(symlink); change("symlink", AT_FDCWD, b, 0, NULL); return real(a, b); }
int symlinkat(const char *a, int x, const char *b) { NEXT(symlinkat); change("symlink", x, b, 0, NULL); return real(a, x, b); }
int mkdir(const char *a, mode_t m) { NEXT(mkdir); change("mkdir", AT_FDCWD, a, 0, NULL); return real(a, m); }
int mkdirat(int x, const char *a, mode_t m) { NEXT(mkdirat); change("mkdir", x, a, 0, NULL); return real(x, a, m); }
int mknod(const char *a, mode_t m, dev_t d) { NEXT(mknod); change("mknod", AT_FDCWD, a, 0, NULL); return real(a, m, d); }
int mknodat(int x, const char *a, mode_t m, dev_t d) { NEXT(mknodat); change("mknod", x, a, 0, NULL); return real(x, a, m, d); }
int mkfifo(const char *a, mode_t m) { NEXT(mkfifo); change("mknod", AT_FDCWD, a, 0, NULL); return real(a, m); }
int unlink(const char *a) { NEXT(unlink); change("unlink", AT_FDCWD, a, 0, NULL); return real(a); }
int unlinkat(int x, const char *a, int f) { NEXT(unlinkat); change(f ? "rmdir" : "unlink", x, a, 0, NULL); return real(x, a, f); }
int rmdir(const char *a) { NEXT(rmdir); change("rmdir", AT_FDCWD, a, 0, NULL); return real(a); }
int truncate(const char *a, off_t s) { NEXT(truncate); change("truncate", AT_FDCWD, a, 0, NULL); return real(a, s); }
int truncate64(const char *a, off64_t s) { NEXT(truncate64); change("truncate", AT_FDCWD, a, 0, NULL); return real(a, s); }
int ftruncate(int x, off_t s) { NEXT(ftruncate); change("truncate", x, NULL, 0, NULL); return real(x, s); }
int ftruncate64(int x, off64_t s) { NEXT(ftruncate64); change("truncate", x, NULL, 0, NULL); return real(x, s); }
int chmod(const char *a, mode_t m) { NEXT(chmod); change("chmod", AT_FDCWD, a, 0, NULL); return real(a, m); }
int fchmod(int x, mode_t m) { NEXT(fchmod); change("chmod", x, NULL, 0, NULL); return real(x, m); }
int fchmodat(int x, const char *a, mode_t m, int f) { NEXT(fchmodat); change("chmod", x, a, 0, NULL); return real(x, a, m, f); }
int chown(const char *a, uid_t u, gid_t g) { NEXT(chown); change("chown", AT_FDCWD, a, 0, NULL); return real(a, u, g); }
int lchown(const char *a, uid_t u, gid_t g) { NEXT(lchown); change("chown", AT_FDCWD, a, 0, NULL); return real(a, u, g); }
int fchown(int x, uid_t u, gid_t g) { NEXT(fchown); change("chown", x, NULL, 0, NULL); return real(x, u, g); }
int fchownat(int x, const char *a, uid_t u, gid_t g, int f) { NEXT(fchownat); change("chown", x, a, 0, NULL); return real(x, a, u, g, f); }
int utimensat(int x, const char *a, const struct timespec t[2], int f) { NEXT(utimensat); change("utime", x, a, 0, NULL); return real(x, a, t, f); }
int futimens(int x, const struct timespec t[2]) { NEXT(futimens); change("utime", x, NULL, 0, NULL); return real(x, t); }
int setxattr(const char *a, const char *n, const void *v, size_t s, int f) { NEXT(setxattr); change("setxattr", AT_FDCWD, a, 0, NULL); return real(a, n, v, s, f); }
int lsetxattr(const char *a, const char *n, const void *v, size_t s, int f) { NEXT(lsetxattr); change("setxattr", AT_FDCWD, a, 0, NULL); return real(a, n, v, s, f); }
int fsetxattr(int x, const char *n, const void *v, size_t s, int f) { NEXT(fsetxattr); change("setxattr", x, NULL, 0, NULL); return real(x, n, v, s, f); }

/* These change nothing that a kill could show, but a power cut would: they are recorded, not counted. */
int fsync(int x) { NEXT(fsync); record("fsync", x, NULL, 0, NULL); return real(x); }
int fdatasync(int x) { NEXT(fdatasync); record("fsync", x, NULL, 0, NULL); return real(x); }
int syncfs(int x) { NEXT(syncfs); record("syncfs", x, NULL, 0, NULL); return real(x); }

/* FS_IOC_ENABLE_VERITY changes a file for good. */
int ioctl(int x, unsigned long request, ...)
{
    NEXT(ioctl);
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (request == 0x40806685)
        change("verity", x, NULL, 0, NULL);
    return real(x, request, argument);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    NEXT(clock_gettime);
    int result = real(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && state->now) {
        time->tv_sec = (time_t)state->now;
        time->tv_nsec = 0;
    }
    return result;
}

time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}
