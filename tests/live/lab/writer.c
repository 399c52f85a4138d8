/*
 * The guest: runs as /init of a tiny initramfs, writes numbered blocks to
 * every virtio disk and remembers in guest memory what was acknowledged.
 *
 * It is one half of an oracle.  The other half (check.py on the host) reads
 * the volume on its own and says whether an acknowledged block is missing or
 * torn.  Both derive the place of a write from its number, so that one line
 * on the console ("sequence 4711 of disk d0 is durable") is enough to know
 * what the whole region must hold, even after the guest died.
 *
 * Console protocol: one command a line in, lines that start with "WL " out.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096U
#define MAX_DISKS 16
#define EXTENTS 4U
#define SCAN 64U                           /* blocks a read */
#define MAGIC UINT64_C(0x4b434f4c424c5051) /* "QPLBLOCK" */

/* On disk, little endian; the checksum covers all 4096 bytes with crc = 0. */
struct block {
    uint64_t magic;
    uint32_t crc;
    uint32_t key; /* of the disk: a block on the wrong disk is a bad block */
    uint64_t seq;
    uint64_t offset;
    uint64_t fill[(BLOCK - 32) / 8];
};

struct disk {
    char dev[16], name[64];
    int fd;
    bool read_only;
    uint64_t size;
    uint32_t key, n_blocks;
    uint32_t *acked;  /* per block: last acknowledged sequence, 0 = none */
    uint64_t seq;     /* last one handed to the disk */
    uint64_t n_acked; /* last one acknowledged */
    uint64_t digest;  /* over 'acked', see digest_of() */
    uint64_t errors;
    uint64_t max_gap_ms, started_ms; /* started_ms != 0: a write is under way */
    uint32_t boot_found, boot_bad;
    struct block *buf;
    bool idle;
};

static struct disk disks[MAX_DISKS];
static unsigned n_disks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake_writers, writer_idle;
static bool paused, saved;
static uint64_t pace_ms = 2, stat_ms = 100, region_blocks = 1024, want_disks;
static uint32_t crc_table[256];

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void say(const char *fmt, ...)
{
    char line[4096];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line) - 2, fmt, ap);
    va_end(ap);
    line[n++] = '\n';
    for (int done = 0; done < n;) {
        ssize_t r = write(1, line + done, (size_t)(n - done));
        if (r <= 0) {
            return;
        }
        done += (int)r;
    }
}

/* The same polynomial as zlib.crc32(), which the checker uses. */
static void crc_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) {
            c = c & 1 ? 0xedb88320U ^ (c >> 1) : c >> 1;
        }
        crc_table[i] = c;
    }
}

static uint32_t crc32_of(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t c = 0xffffffffU;
    while (n--) {
        c = crc_table[(c ^ *p++) & 0xff] ^ (c >> 8);
    }
    return ~c;
}

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint32_t index_of(const struct disk *d, uint64_t seq)
{
    return (uint32_t)(mix(seq ^ ((uint64_t)d->key << 32)) % d->n_blocks);
}

/* Four equal extents; the first starts at 0, the last ends at the end. */
static uint64_t offset_of(const struct disk *d, uint32_t index)
{
    uint32_t per = d->n_blocks / EXTENTS, k = index / per;
    uint64_t room = d->size - (uint64_t)per * BLOCK;
    uint64_t start = room / (EXTENTS - 1) * k;
    if (k == EXTENTS - 1) {
        start = room;
    }
    return start / BLOCK * BLOCK + (uint64_t)(index % per) * BLOCK;
}

static uint64_t digest_of(uint32_t index, uint64_t seq)
{
    return seq ? mix(((uint64_t)index << 40) ^ seq) : 0;
}

static void block_fill(struct block *b, const struct disk *d, uint64_t seq,
                       uint64_t offset)
{
    b->magic = MAGIC;
    b->crc = 0;
    b->key = d->key;
    b->seq = seq;
    b->offset = offset;
    uint64_t x = mix(seq ^ offset);
    for (size_t i = 0; i < sizeof(b->fill) / sizeof(b->fill[0]); i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        b->fill[i] = x;
    }
    b->crc = crc32_of(b, BLOCK);
}

static bool block_ok(struct block *b, const struct disk *d, uint64_t offset)
{
    uint32_t crc = b->crc;
    b->crc = 0;
    bool ok = b->magic == MAGIC && crc == crc32_of(b, BLOCK) &&
              b->key == d->key && b->offset == offset;
    b->crc = crc;
    return ok;
}

static bool block_blank(const struct block *b)
{
    const uint64_t *p = (const uint64_t *)b;
    for (size_t i = 0; i < BLOCK / 8; i++) {
        if (p[i]) {
            return false;
        }
    }
    return true;
}

static void set_acked(struct disk *d, uint32_t index, uint64_t seq)
{
    d->digest ^= digest_of(index, d->acked[index]) ^ digest_of(index, seq);
    d->acked[index] = (uint32_t)seq;
}

static void *writer(void *data)
{
    struct disk *d = data;

    pthread_mutex_lock(&lock);
    for (;;) {
        while (paused) {
            d->idle = true;
            pthread_cond_signal(&writer_idle);
            pthread_cond_wait(&wake_writers, &lock);
        }
        d->idle = false;
        uint64_t seq = ++d->seq;
        uint32_t index = index_of(d, seq);
        uint64_t offset = offset_of(d, index), start = now_ms();
        d->started_ms = start;
        pthread_mutex_unlock(&lock);

        block_fill(d->buf, d, seq, offset);
        ssize_t n = pwrite(d->fd, d->buf, BLOCK, (off_t)offset);

        pthread_mutex_lock(&lock);
        uint64_t gap = now_ms() - start;
        d->max_gap_ms = gap > d->max_gap_ms ? gap : d->max_gap_ms;
        d->started_ms = 0;
        if (n == BLOCK) {
            set_acked(d, index, seq);
            d->n_acked = seq;
        } else {
            d->errors++;
        }
        if (pace_ms && !paused) {
            struct timespec t;
            clock_gettime(CLOCK_MONOTONIC, &t);
            uint64_t ns = (uint64_t)t.tv_nsec + pace_ms * 1000000;
            t.tv_sec += (time_t)(ns / 1000000000);
            t.tv_nsec = (long)(ns % 1000000000);
            pthread_cond_timedwait(&wake_writers, &lock, &t);
        }
    }
    return NULL;
}

/* Looks at one block; returns true if it is bad. */
static bool scan_block(struct disk *d, struct block *b, uint32_t index,
                       bool boot)
{
    bool blank = block_blank(b);
    if (!blank && !block_ok(b, d, offset_of(d, index))) {
        return true;
    }
    uint64_t seq = blank ? 0 : b->seq;
    if (!boot) {
        return seq != d->acked[index];
    }
    set_acked(d, index, seq);
    d->boot_found += !blank;
    d->seq = seq > d->seq ? seq : d->seq;
    return false;
}

/*
 * Reads every block of the region, many at a time.  At boot the table is
 * taken from the disk; later it is compared with the table.  Returns how many
 * blocks are bad.
 */
static uint32_t scan(struct disk *d, bool boot)
{
    static struct block *many;
    uint32_t bad = 0, per = d->n_blocks / EXTENTS, n;

    if (!many && posix_memalign((void **)&many, BLOCK, BLOCK * SCAN)) {
        return d->n_blocks;
    }
    for (uint32_t i = 0; i < d->n_blocks; i += n) {
        n = per - i % per < SCAN ? per - i % per : SCAN;
        ssize_t r = pread(d->fd, many, n * BLOCK, (off_t)offset_of(d, i));
        for (uint32_t k = 0; k < n; k++) {
            bad += r != n * BLOCK || scan_block(d, many + k, i + k, boot);
        }
    }
    if (boot) {
        d->boot_bad = bad;
        d->n_acked = d->seq;
    }
    return bad;
}

static void report(const char *word)
{
    char line[3500];
    int n = 0;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < n_disks; i++) {
        const struct disk *d = &disks[i];
        uint64_t now = d->started_ms ? now_ms() - d->started_ms : 0;
        uint64_t gap = now > d->max_gap_ms ? now : d->max_gap_ms;
        n += snprintf(line + n, sizeof(line) - (size_t)n,
                      " %s=seq:%llu,acked:%llu,errors:%llu,maxgap_ms:%llu,"
                      "stall_ms:%llu,digest:%016llx",
                      d->name, (unsigned long long)d->seq,
                      (unsigned long long)d->n_acked,
                      (unsigned long long)d->errors, (unsigned long long)gap,
                      (unsigned long long)now, (unsigned long long)d->digest);
    }
    pthread_mutex_unlock(&lock);
    say("WL %s%s", word, line);
}

static void dump(void)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    enum { PER_LINE = 384 }; /* 1536 bytes, a multiple of 3: no padding */

    for (unsigned i = 0; i < n_disks; i++) {
        const struct disk *d = &disks[i];
        for (uint32_t at = 0; at < d->n_blocks; at += PER_LINE) {
            uint8_t raw[PER_LINE * 4 + 2] = {0};
            char text[PER_LINE * 6 + 1];
            uint32_t n = d->n_blocks - at;
            n = n > PER_LINE ? PER_LINE : n;
            memcpy(raw, d->acked + at, n * 4);
            size_t o = 0;
            for (size_t k = 0; k < n * 4; k += 3) {
                uint32_t v = (uint32_t)raw[k] << 16 |
                             (uint32_t)raw[k + 1] << 8 | raw[k + 2];
                for (int s = 18; s >= 0; s -= 6) {
                    text[o++] = digits[v >> s & 63];
                }
            }
            text[o] = 0;
            say("WL table %s %u %u %08x %s", d->name, at, n, crc32_of(text, o),
                text);
        }
    }
    report("dumped");
}

static void pause_writers(void)
{
    pthread_mutex_lock(&lock);
    paused = true;
    pthread_cond_broadcast(&wake_writers);
    for (unsigned i = 0; i < n_disks; i++) {
        while (!disks[i].read_only && !disks[i].idle) {
            pthread_cond_wait(&writer_idle, &lock);
        }
    }
    pthread_mutex_unlock(&lock);
    for (unsigned i = 0; i < n_disks; i++) {
        if (!disks[i].read_only && fdatasync(disks[i].fd) < 0) {
            disks[i].errors++;
        }
    }
}

static void verify(void)
{
    char line[1024] = "";
    int n = 0;
    pause_writers();
    for (unsigned i = 0; i < n_disks; i++) {
        n += snprintf(line + n, sizeof(line) - (size_t)n, " %s=%u",
                      disks[i].name, scan(&disks[i], false));
    }
    say("WL verified%s", line);
}

static void die(const char *what)
{
    say("WL fatal %s: %s", what, strerror(errno));
    for (;;) {
        pause();
    }
}

static void leave(int how)
{
    tcdrain(1);
    reboot(how);
}

static void command(char *c)
{
    if (!strcmp(c, "pause")) {
        pause_writers();
        report("paused");
    } else if (!strcmp(c, "resume")) {
        pthread_mutex_lock(&lock);
        paused = false;
        pthread_cond_broadcast(&wake_writers);
        pthread_mutex_unlock(&lock);
        say("WL resumed");
    } else if (!strcmp(c, "dump")) {
        dump();
    } else if (!strcmp(c, "report")) {
        report("report");
    } else if (!strcmp(c, "reset")) { /* the counters, not the machine */
        pthread_mutex_lock(&lock);
        for (unsigned i = 0; i < n_disks; i++) {
            disks[i].max_gap_ms = disks[i].errors = 0;
        }
        pthread_mutex_unlock(&lock);
        say("WL counters");
    } else if (!strcmp(c, "verify")) {
        verify();
    } else if (!strncmp(c, "pace ", 5)) {
        pace_ms = strtoull(c + 5, NULL, 10);
        say("WL pace");
    } else if (!strcmp(c, "poweroff")) {
        leave(RB_POWER_OFF);
    } else if (!strcmp(c, "reboot")) {
        leave(RB_AUTOBOOT);
    } else if (*c) {
        say("WL unknown %s", c);
    }
}

static void read_file(const char *path, char *buf, size_t size)
{
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? 0 : read(fd, buf, size - 1);
    n = n < 0 ? 0 : n;
    while (n && isspace((unsigned char)buf[n - 1])) {
        n--;
    }
    buf[n] = 0;
    if (fd >= 0) {
        close(fd);
    }
}

static void load_modules(void)
{
    char list[4096];
    read_file("/modules.list", list, sizeof(list));
    for (char *save, *m = strtok_r(list, "\n", &save); m;
         m = strtok_r(NULL, "\n", &save)) {
        int fd = open(m, O_RDONLY);
        if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST) {
            say("WL module %s: %s", m, strerror(errno));
        }
        close(fd);
    }
}

static void read_parameters(char *line)
{
    for (char *save, *w = strtok_r(line, " ", &save); w;
         w = strtok_r(NULL, " ", &save)) {
        unsigned long long v;
        if (sscanf(w, "qpl.disks=%llu", &v) == 1) {
            want_disks = v;
        } else if (sscanf(w, "qpl.blocks=%llu", &v) == 1) {
            region_blocks = v;
        } else if (sscanf(w, "qpl.pace=%llu", &v) == 1) {
            pace_ms = v;
        } else if (sscanf(w, "qpl.stat=%llu", &v) == 1) {
            stat_ms = v;
        } else if (sscanf(w, "qpl.paused=%llu", &v) == 1) {
            paused = v != 0;
        } else if (sscanf(w, "qpl.saved=%llu", &v) == 1) {
            saved = v != 0;
        }
    }
}

/*
 * The machine is saved here, without a disk.  Where it is loaded it has some,
 * which its bus shows when it is looked at again.
 */
static void wait_for_disks(void)
{
    char line[1024];
    size_t n = 0;

    say("WL saved");
    while (n < sizeof(line) - 1 && read(0, line + n, 1) == 1 &&
           line[n] != '\n') {
        n++;
    }
    line[n] = 0;
    read_parameters(line);
    int fd = open("/sys/bus/pci/rescan", O_WRONLY);
    if (fd < 0 || write(fd, "1", 1) != 1) {
        die("rescan");
    }
    close(fd);
}

static void open_disk(const char *dev)
{
    struct disk *d = &disks[n_disks];
    char path[64];
    int ro = 0;

    snprintf(d->dev, sizeof(d->dev), "%s", dev);
    snprintf(path, sizeof(path), "/sys/block/%s/serial", dev);
    read_file(path, d->name, sizeof(d->name));
    if (!d->name[0]) {
        snprintf(d->name, sizeof(d->name), "%s", dev);
    }
    snprintf(path, sizeof(path), "/dev/%s", dev);
    d->fd = open(path, O_RDWR | O_DIRECT | O_DSYNC);
    if (d->fd < 0) {
        d->fd = open(path, O_RDONLY | O_DIRECT);
        d->read_only = true;
    }
    if (d->fd < 0 || ioctl(d->fd, BLKGETSIZE64, &d->size) < 0) {
        die(path);
    }
    if (!ioctl(d->fd, BLKROGET, &ro) && ro) {
        d->read_only = true;
    }
    d->key = crc32_of(d->name, strlen(d->name));
    d->n_blocks = (uint32_t)region_blocks / EXTENTS * EXTENTS;
    uint64_t most = d->size / BLOCK / 2 / EXTENTS * EXTENTS;
    if (most < d->n_blocks) {
        d->n_blocks = (uint32_t)most;
    }
    d->acked = calloc(d->n_blocks, sizeof(*d->acked));
    if (!d->n_blocks || !d->acked ||
        posix_memalign((void **)&d->buf, BLOCK, BLOCK)) {
        die("memory");
    }
    d->idle = true;
    n_disks++;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void find_disks(void)
{
    char *names[MAX_DISKS];
    uint64_t until = now_ms() + 10000;
    unsigned n;
    do {
        struct dirent *e;
        DIR *dir = opendir("/sys/block");
        for (n = 0; dir && n < MAX_DISKS && (e = readdir(dir));) {
            if (!strncmp(e->d_name, "vd", 2)) {
                names[n++] = strdup(e->d_name);
            }
        }
        closedir(dir);
    } while (n < want_disks && now_ms() < until && poll(NULL, 0, 20) == 0);
    qsort(names, n, sizeof(names[0]), by_name);
    for (unsigned i = 0; i < n; i++) {
        open_disk(names[i]);
    }
}

static void console_init(void)
{
    struct termios t;
    int fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    if (fd < 0) {
        return;
    }
    tcgetattr(fd, &t);
    cfmakeraw(&t);
    cfsetspeed(&t, B115200);
    tcsetattr(fd, TCSANOW, &t);
    dup2(fd, 0);
    dup2(fd, 1);
    dup2(fd, 2);
}

static void boot(void)
{
    char line[4096];

    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    console_init();
    crc_init();
    read_file("/proc/cmdline", line, sizeof(line));
    read_parameters(line);
    load_modules();
    if (saved) {
        wait_for_disks();
    }
    find_disks();
}

static void start_writers(void)
{
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&wake_writers, &a);
    pthread_cond_init(&writer_idle, &a);
    for (unsigned i = 0; i < n_disks; i++) {
        struct disk *d = &disks[i];
        pthread_t t;
        scan(d, true);
        say("WL disk %s dev=%s size=%llu ro=%d blocks=%u found=%u bad=%u "
            "maxseq=%llu",
            d->name, d->dev, (unsigned long long)d->size, d->read_only,
            d->n_blocks, d->boot_found, d->boot_bad,
            (unsigned long long)d->seq);
        if (!d->read_only && pthread_create(&t, NULL, writer, d)) {
            die("thread");
        }
    }
}

int main(void)
{
    char line[256];
    size_t n = 0;

    boot();
    start_writers();
    say("WL ready disks=%u", n_disks);
    for (uint64_t next = now_ms() + stat_ms;;) {
        struct pollfd p = {.fd = 0, .events = POLLIN};
        uint64_t now = now_ms();
        if (now >= next) {
            report("stat");
            next = now + stat_ms;
            continue;
        }
        if (poll(&p, 1, (int)(next - now)) <= 0) {
            continue;
        }
        char c;
        if (read(0, &c, 1) != 1) {
            continue;
        }
        if (c == '\n' || c == '\r' || n == sizeof(line) - 1) {
            line[n] = 0;
            n = 0;
            command(line);
        } else {
            line[n++] = c;
        }
    }
}
