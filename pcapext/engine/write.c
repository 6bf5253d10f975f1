/* Writing selected records: as they stand, or in another format. */
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>

/* ---- times ---- */

#define SECOND 1000000000

int64_t time_ns(const struct clock *clock, uint64_t time)
{
    __int128 nanoseconds;
    if (clock->resolution == 0)
        nanoseconds = (__int128)(time >> 32) * SECOND + (__int128)(time & 0xFFFFFFFFu) * clock->unit;
    else
        nanoseconds = (__int128)(time / clock->resolution) * SECOND + (__int128)(time % clock->resolution) * SECOND / clock->resolution;
    nanoseconds += (__int128)clock->offset * SECOND;
    return nanoseconds > INT64_MAX ? INT64_MAX : nanoseconds < INT64_MIN ? INT64_MIN : (int64_t)nanoseconds;
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
