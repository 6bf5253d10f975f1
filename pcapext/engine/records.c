/* Where the records of a capture are.
 *
 * Formats: pcap (draft-ietf-opsawg-pcap; old versions as libpcap's sf-pcap.c reads them) and pcapng (draft-ietf-opsawg-pcapng). A scan
 * hops from record to record and looks at nothing but their heads. What it describes lies wholly inside the buffer; where a record
 * does not, or cannot be one, it stops and says why.
 */
#include "engine.h"

#include <string.h>

static inline uint32_t word_at(const uint8_t *at, int swapped)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return swapped ? __builtin_bswap32(value) : value;
}

static inline uint32_t half_at(const uint8_t *at, int swapped)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return swapped ? __builtin_bswap16(value) : value;
}

/* ---- pcap ---- */

/* The bytes captured and the length on the wire. */
static inline void read_lengths(const struct pcap_layout *layout, const uint8_t *at, uint32_t *caplen, uint32_t *wirelen)
{
    *caplen = word_at(at + 8, layout->swapped);
    *wirelen = word_at(at + 12, layout->swapped);
    if (layout->lengths == LENGTHS_SWAPPED || (layout->lengths == LENGTHS_MAYBE_SWAPPED && *caplen > *wirelen)) {
        uint32_t first = *caplen;
        *caplen = *wirelen;
        *wirelen = first;
    }
}

struct scanned scan_pcap(const struct pcap_layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled,
                         struct record *records, uint32_t capacity, const struct program *program, uint32_t *selected)
{
    struct scanned scanned = {.end = from, .stop = STOP_END};
    while (scanned.end < before) {
        uint32_t start = scanned.end, caplen, wirelen;
        if (filled - start < layout->header) {
            scanned.stop = STOP_PARTIAL;
            scanned.needed = layout->header;
            break;
        }
        read_lengths(layout, buffer + start, &caplen, &wirelen);
        if (caplen > layout->longest) {
            scanned.stop = STOP_TOO_LONG;
            scanned.needed = caplen;
            break;
        }
        if (filled - start - layout->header < caplen) {
            scanned.stop = STOP_PARTIAL;
            scanned.needed = layout->header + caplen;
            break;
        }
        if (scanned.count == capacity) {
            scanned.stop = STOP_FULL;
            break;
        }
        records[scanned.count++] = (struct record){
            .time = (uint64_t)word_at(buffer + start, layout->swapped) << 32 | word_at(buffer + start + 4, layout->swapped),
            .start = start,
            .end = start + layout->header + caplen,
            .data = start + layout->header,
            .caplen = caplen,
            .wirelen = wirelen,
        };
        scanned.end = start + layout->header + caplen;
        if (program != NULL && scanned.accepted != STOPPED) {
            __builtin_prefetch(buffer + scanned.end);
            __builtin_prefetch(buffer + scanned.end + 64);
            __builtin_prefetch(buffer + scanned.end + 128);
            int64_t value = program_run(program, buffer + start + layout->header, caplen, wirelen);
            selected[scanned.accepted] = scanned.count - 1;
            scanned.accepted = value < 0 ? value : scanned.accepted + (value != 0);
        }
    }
    scanned.packets = scanned.count;
    return scanned;
}

/* So many plausible records in a row are no accident. */
#define ENOUGH 32

#define LONGEST_CUT (1u << 24) /* bytes that a plausible packet lost when it was captured */
#define LONGEST_GAP 86400u     /* seconds between two packets */

uint32_t guess_pcap(const struct pcap_layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled)
{
    for (uint32_t guess = from; guess < before; guess++) {
        uint32_t at = guess, found = 0, last = 0;
        while (found < ENOUGH && filled - at >= layout->header) {
            uint32_t seconds = word_at(buffer + at, layout->swapped), caplen, wirelen;
            read_lengths(layout, buffer + at, &caplen, &wirelen);
            if (caplen == 0 || caplen > layout->longest || wirelen < caplen || wirelen - caplen > LONGEST_CUT ||
                word_at(buffer + at + 4, layout->swapped) >= 1000000000u)
                break;
            if (found > 0 && seconds - last + LONGEST_GAP > 2 * LONGEST_GAP)
                break;
            last = seconds;
            found++;
            if (filled - at - layout->header <= caplen) { /* the last one of the buffer */
                at = filled;
                break;
            }
            at += layout->header + caplen;
        }
        if (found == ENOUGH || (found > 1 && filled - at < layout->header))
            return guess;
    }
    return NOWHERE;
}

/* ---- pcapng ---- */

enum { INTERFACE_BLOCK = 1, PACKET_BLOCK = 2, SIMPLE_BLOCK = 3, ENHANCED_BLOCK = 6, SECTION_BLOCK = 0x0A0D0D0A };

#define BYTE_ORDER_MAGIC 0x1A2B3C4Du
#define SMALLEST_BLOCK 12u

/* The head of a block: its order, kind and length. A stop where it is none, or is not whole in the buffer. */
struct block {
    int swapped;
    uint32_t kind;
    uint32_t length;
};

static int read_block(const struct pcapng_layout *layout, const uint8_t *at, uint32_t left, struct block *block, uint32_t *needed)
{
    *needed = SMALLEST_BLOCK;
    if (left < SMALLEST_BLOCK)
        return STOP_PARTIAL;
    block->swapped = layout->swapped;
    block->kind = word_at(at, block->swapped);
    if (block->kind == SECTION_BLOCK) { /* reads the same in both orders */
        *needed = word_at(at + 8, 0);
        if (*needed != BYTE_ORDER_MAGIC && *needed != __builtin_bswap32(BYTE_ORDER_MAGIC))
            return STOP_MAGIC;
        block->swapped = *needed != BYTE_ORDER_MAGIC;
    }
    *needed = block->length = word_at(at + 4, block->swapped);
    if (block->length < SMALLEST_BLOCK || block->length % 4 != 0 || block->length > layout->largest)
        return STOP_BLOCK;
    if (left < block->length)
        return STOP_PARTIAL;
    *needed = word_at(at + block->length - 4, block->swapped);
    return *needed == block->length ? STOP_END : STOP_TRAILER;
}

/* Fill in what a block says of a packet. `body` and `length` are without the parts that all blocks have. */
static int read_packet(const struct pcapng_layout *layout, const struct block *block, const uint8_t *body, uint32_t length,
                       struct record *record, uint32_t *needed)
{
    int swapped = block->swapped;
    uint32_t head = block->kind == SIMPLE_BLOCK ? 4 : 20;
    *needed = head;
    if (length < head)
        return STOP_OVERRUN;
    if (block->kind == SIMPLE_BLOCK) {
        record->interface = 0;
        record->wirelen = record->caplen = word_at(body, swapped);
    } else {
        record->interface = block->kind == PACKET_BLOCK ? half_at(body, swapped) : word_at(body, swapped);
        record->time = (uint64_t)word_at(body + 4, swapped) << 32 | word_at(body + 8, swapped);
        record->caplen = word_at(body + 12, swapped);
        record->wirelen = word_at(body + 16, swapped);
    }
    *needed = record->interface;
    if (record->interface >= layout->interfaces)
        return STOP_INTERFACE;
    uint32_t longest = layout->longest[record->interface];
    if (block->kind == SIMPLE_BLOCK && record->caplen > longest) /* it says only how long the packet was */
        record->caplen = longest;
    *needed = record->caplen;
    if (record->caplen > longest)
        return STOP_TOO_LONG;
    if (record->caplen > length - head)
        return STOP_OVERRUN;
    record->data = record->start + 8 + head;
    return STOP_END;
}

struct scanned scan_pcapng(const struct pcapng_layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled,
                           struct record *records, uint32_t capacity)
{
    struct scanned scanned = {.end = from, .stop = STOP_END};
    while (scanned.end < before) {
        uint32_t start = scanned.end;
        struct block block;
        scanned.stop = read_block(layout, buffer + start, filled - start, &block, &scanned.needed);
        if (scanned.stop != STOP_END)
            break;
        if (scanned.count == capacity) {
            scanned.stop = STOP_FULL;
            break;
        }
        struct record *record = &records[scanned.count];
        *record = (struct record){.start = start, .end = start + block.length, .interface = NOT_A_PACKET};
        switch (block.kind) {
        case PACKET_BLOCK:
        case SIMPLE_BLOCK:
        case ENHANCED_BLOCK:
            scanned.stop = read_packet(layout, &block, buffer + start + 8, block.length - SMALLEST_BLOCK, record, &scanned.needed);
            if (scanned.stop != STOP_END)
                return scanned;
            break;
        case SECTION_BLOCK:
        case INTERFACE_BLOCK:
            scanned.stop = STOP_SECTION;
        }
        scanned.count++;
        scanned.packets += record->interface != NOT_A_PACKET;
        scanned.end = record->end;
        if (scanned.stop != STOP_END)
            break;
    }
    return scanned;
}

uint32_t guess_pcapng(const struct pcapng_layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled)
{
    for (uint32_t guess = from; guess < before; guess++) {
        uint32_t at = guess, found = 0, needed;
        int stop = STOP_END;
        while (found < ENOUGH && stop == STOP_END) {
            struct block block;
            stop = read_block(layout, buffer + at, filled - at, &block, &needed);
            if (stop == STOP_END) {
                at += block.length;
                found++;
            }
        }
        /* Lengths that stand twice make even one block in the buffer's end plausible. */
        if (found == ENOUGH || (found > 0 && stop == STOP_PARTIAL))
            return guess;
    }
    return NOWHERE;
}
