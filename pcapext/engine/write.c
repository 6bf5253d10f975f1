/* Writing selected records: as they stand, or in another format. */
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>

/* ---- times ---- */

#define SECOND 1000000000 /* in nanoseconds */

/* `part` / `whole` of a second in nanoseconds, rounded down; part < whole. */
static uint64_t nanoseconds_of(uint64_t part, uint64_t whole)
{
    if (whole <= UINT64_MAX / SECOND)
        return part * SECOND / whole;
    /* The product may take 94 bits: it is made bit by bit of SECOND, and `whole` taken off wherever it fits. Sums wrap around. */
    uint64_t quotient = 0, rest = 0;
    for (uint32_t bit = 1u << 29; bit != 0; bit >>= 1) {
        int fits = rest >= whole - rest;
        quotient = 2 * quotient + (uint64_t)fits;
        rest = 2 * rest - (fits ? whole : 0);
        if (SECOND & bit) {
            fits = rest >= whole - part;
            quotient += (uint64_t)fits;
            rest = rest + part - (fits ? whole : 0);
        }
    }
    return quotient;
}

int64_t time_ns(const struct clock *clock, uint64_t time)
{
    uint64_t whole = time >> 32, part = (time & 0xFFFFFFFFu) * clock->unit;
    if (clock->resolution != 0) {
        whole = time / clock->resolution;
        part = nanoseconds_of(time % clock->resolution, clock->resolution);
    }
    int64_t seconds, nanoseconds, rest = (int64_t)part;
    if (__builtin_add_overflow(whole, clock->offset, &seconds))
        return INT64_MAX;
    if (seconds < 0) { /* count from the end of the second, so that the smallest sum is never left on the way to it */
        seconds++;
        rest -= SECOND;
    }
    if (__builtin_mul_overflow(seconds, (int64_t)SECOND, &nanoseconds) || __builtin_add_overflow(nanoseconds, rest, &nanoseconds))
        return seconds < 0 ? INT64_MIN : INT64_MAX;
    return nanoseconds;
}

void record_times(const struct clock *clocks, const struct record *records, const uint32_t *selected, uint32_t length, int64_t *times)
{
    for (uint32_t index = 0; index < length; index++) {
        const struct record *record = &records[selected[index]];
        times[index] = time_ns(&clocks[record->interface], record->time);
    }
}

/* ---- as they stand ---- */

/* Pieces in one call. The system takes 1024 (IOV_MAX of Linux). */
#define PIECES 1024

/* Write all pieces. 0, or the errno of what failed. */
static int write_pieces(int descriptor, struct iovec *pieces, int count)
{
    while (count > 0) {
        ssize_t written = writev(descriptor, pieces, count);
        if (written < 0) {
            if (errno == EAGAIN) { /* a pipe whose other end told it not to wait */
                struct pollfd ready = {.fd = descriptor, .events = POLLOUT};
                if (poll(&ready, 1, -1) < 0 && errno != EINTR)
                    return errno;
            } else if (errno != EINTR) {
                return errno;
            }
            continue;
        }
        while (count > 0 && (size_t)written >= pieces->iov_len) {
            written -= (ssize_t)pieces->iov_len;
            pieces++;
            count--;
        }
        if (written > 0) {
            pieces->iov_base = (uint8_t *)pieces->iov_base + written;
            pieces->iov_len -= (size_t)written;
        }
    }
    return 0;
}

int write_records(int descriptor, const uint8_t *buffer, const struct record *records, const uint32_t *selected, uint32_t length)
{
    struct iovec pieces[PIECES];
    uint32_t index = 0;
    while (index < length) {
        int count = 0;
        while (index < length && count < PIECES) {
            uint32_t start = records[selected[index]].start, end = records[selected[index]].end;
            while (++index < length && records[selected[index]].start == end) /* a run */
                end = records[selected[index]].end;
            pieces[count++] = (struct iovec){(uint8_t *)buffer + start, end - start};
        }
        int fault = write_pieces(descriptor, pieces, count);
        if (fault)
            return fault;
    }
    return 0;
}

struct converted copy_records(const uint8_t *buffer, const struct record *records, const uint32_t *selected, uint32_t length,
                              uint8_t *output, uint32_t capacity)
{
    struct converted converted = {0};
    while (converted.records < length) {
        const struct record *record = &records[selected[converted.records]];
        uint32_t size = record->end - record->start;
        if (capacity - converted.length < size)
            break;
        memcpy(output + converted.length, buffer + record->start, size);
        converted.length += size;
        converted.records++;
    }
    return converted;
}

uint32_t keep_records(const uint8_t *buffer, const struct record *records, const uint32_t *selected, uint32_t length,
                      struct record *copies, uint32_t *starts, uint8_t *output)
{
    uint32_t filled = 0;
    for (uint32_t index = 0; index < length; index++) {
        const struct record *record = &records[selected[index]];
        uint32_t size = record->end - record->start;
        if (output) {
            memcpy(output + filled, buffer + record->start, size);
            starts[index] = record->start;
            copies[index] = *record;
            copies[index].start = filled;
            copies[index].end = filled + size;
            copies[index].data = filled + (record->data - record->start);
        }
        filled += size;
    }
    return filled;
}

/* ---- in another format ---- */

static inline uint8_t *put(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

/* Seconds and fraction for pcap. A time that is already in this unit is kept as it is, even if it makes no sense. */
static int split_time(const struct form *form, const struct clock *clock, uint64_t time, uint32_t *seconds, uint32_t *fraction)
{
    if (clock->resolution == 0 && clock->unit == form->unit) {
        *seconds = (uint32_t)(time >> 32);
        *fraction = (uint32_t)time;
        return 0;
    }
    int64_t nanoseconds = time_ns(clock, time);
    if (nanoseconds < 0 || nanoseconds / SECOND > UINT32_MAX)
        return CONVERT_TIME;
    *seconds = (uint32_t)(nanoseconds / SECOND);
    *fraction = (uint32_t)(nanoseconds % SECOND) / form->unit;
    return 0;
}

struct converted convert_records(const struct form *form, const struct clock *clocks, const uint8_t *buffer, const struct record *records,
                                 const uint32_t *selected, uint32_t length, uint8_t *output, uint32_t capacity)
{
    struct converted converted = {0};
    for (; converted.records < length; converted.records++) {
        const struct record *record = &records[selected[converted.records]];
        if (record->interface == NOT_A_PACKET)
            continue;
        const struct clock *clock = &clocks[record->interface];
        uint32_t padding = form->pcapng ? (0 - record->caplen) & 3u : 0;
        uint32_t size = (form->pcapng ? 32 : 16) + record->caplen + padding;
        if (capacity - converted.length < size)
            break;
        if (record->caplen > form->snaplen) {
            converted.fault = CONVERT_SNAPLEN;
            break;
        }
        uint8_t *at = output + converted.length;
        if (form->pcapng) {
            int64_t nanoseconds = time_ns(clock, record->time);
            if (nanoseconds < 0) {
                converted.fault = CONVERT_TIME;
                break;
            }
            uint64_t ticks = (uint64_t)nanoseconds / form->unit;
            at = put(put(put(at, 6), size), form->interfaces[record->interface]);
            at = put(put(at, (uint32_t)(ticks >> 32)), (uint32_t)ticks);
        } else {
            uint32_t seconds, fraction;
            converted.fault = split_time(form, clock, record->time, &seconds, &fraction);
            if (converted.fault)
                break;
            at = put(put(at, seconds), fraction);
        }
        at = put(put(at, record->caplen), record->wirelen);
        memcpy(at, buffer + record->data, record->caplen);
        at += record->caplen;
        if (form->pcapng) {
            memset(at, 0, padding);
            put(at + padding, size);
        }
        converted.length += size;
    }
    return converted;
}
