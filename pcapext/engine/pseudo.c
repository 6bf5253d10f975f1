/* Pseudo headers: what capturing systems put before packets, with numbers in their own byte order.
 *
 * libpcap turns these numbers to the order of the machine that reads, so that filters and whoever prints packets need not care; and it
 * corrects lengths that old versions of it wrote. What is done here is what it does (pcap-util.c, pcap_post_process, of 1.10.3),
 * in packets that were cut, too. The layouts are those of pflog.h, pcap/sll.h, pcap/usb.h and pcap/nflog.h.
 */
#include "engine.h"

#include <string.h>

/* DLT numbers. */
enum { LINUX_SLL = 113, PFLOG = 117, USB_LINUX = 189, USB_LINUX_MMAPPED = 220, NFLOG = 239, LINUX_SLL2 = 276 };

/* A number: where it begins, and how many bytes it has. A table ends with one of none. */
struct number {
    uint8_t at, size;
};

/* uid, pid, rule_uid, rule_pid */
static const struct number PFLOG_NUMBERS[] = {{44, 4}, {48, 4}, {52, 4}, {56, 4}, {0, 0}};

/* The identifier of a CAN frame, behind the cooked header. */
static const struct number SLL_CAN_NUMBERS[] = {{16, 4}, {0, 0}};
static const struct number SLL2_CAN_NUMBERS[] = {{20, 4}, {0, 0}};

/* id, bus_id, ts_sec, ts_usec, status, urb_len, data_len */
static const struct number USB_NUMBERS[] = {{0, 8}, {12, 2}, {16, 8}, {24, 4}, {28, 4}, {32, 4}, {36, 4}, {0, 0}};
/* error_count, numdesc: of isochronous transfers */
static const struct number USB_ISOCHRONOUS_NUMBERS[] = {{40, 4}, {44, 4}, {0, 0}};
/* interval, start_frame, xfer_flags, ndesc */
static const struct number USB_MMAPPED_NUMBERS[] = {{48, 4}, {52, 4}, {56, 4}, {60, 4}, {0, 0}};
/* status, offset, len: of a descriptor */
static const struct number USB_DESCRIPTOR_NUMBERS[] = {{0, 4}, {4, 4}, {8, 4}, {0, 0}};

enum { USB_EVENT = 8, USB_TRANSFER = 9, USB_ENDPOINT = 10, USB_NO_DATA = 15, USB_URB_LENGTH = 32, USB_DESCRIPTORS = 60 };
enum { ISOCHRONOUS = 0, INCOMING = 0x80, COMPLETE = 'C' };
#define USB_MMAPPED_HEADER 64u
#define USB_DESCRIPTOR 16u

static inline uint32_t word_at(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void turn(uint8_t *at, uint32_t size)
{
    for (uint32_t low = 0, high = size - 1; low < high; low++, high--) {
        uint8_t octet = at[low];
        at[low] = at[high];
        at[high] = octet;
    }
}

/* Turn the numbers that lie wholly in the first `length` bytes. */
static void turn_numbers(const struct number *number, uint8_t *packet, uint32_t length)
{
    for (; number->size; number++)
        if ((uint32_t)number->at + number->size <= length)
            turn(packet + number->at, number->size);
}

static void turn_pflog(uint8_t *packet, uint32_t length)
{
    if (length > 0) /* it begins with its own length */
        turn_numbers(PFLOG_NUMBERS, packet, packet[0] < length ? packet[0] : length);
}

/* `protocol` is where a cooked header has what follows. */
static void turn_cooked(const struct number *numbers, uint32_t protocol, uint8_t *packet, uint32_t length)
{
    if (length >= protocol + 2 && packet[protocol] == 0 && (packet[protocol + 1] == 0x0C || packet[protocol + 1] == 0x0D)) /* CAN, CAN FD */
        turn_numbers(numbers, packet, length);
}

static void turn_usb(int is_mmapped, uint8_t *packet, uint32_t length)
{
    turn_numbers(USB_NUMBERS, packet, length);
    int is_isochronous = length > USB_TRANSFER && packet[USB_TRANSFER] == ISOCHRONOUS;
    if (is_isochronous)
        turn_numbers(USB_ISOCHRONOUS_NUMBERS, packet, length);
    if (!is_mmapped)
        return;
    turn_numbers(USB_MMAPPED_NUMBERS, packet, length);
    if (!is_isochronous || length < USB_MMAPPED_HEADER)
        return;
    uint32_t descriptors = word_at(packet + USB_DESCRIPTORS);
    for (uint32_t at = USB_MMAPPED_HEADER; descriptors > 0 && at < length; descriptors--, at += USB_DESCRIPTOR)
        turn_numbers(USB_DESCRIPTOR_NUMBERS, packet + at, length - at);
}

/* Behind a header of 4 bytes, whose second is the version, there are attributes: length, type, value, filled up to a multiple of 4 bytes. */
static void turn_nflog(uint8_t *packet, uint32_t caplen, uint32_t length)
{
    if (length < 4 || packet[1] != 0)
        return;
    for (uint32_t at = 4; caplen - at >= 4;) {
        turn(packet + at, 2);
        turn(packet + at + 2, 2);
        uint16_t size;
        memcpy(&size, packet + at, sizeof size);
        size = (uint16_t)(size + 3) & ~3u; /* libpcap has it in 16 bits too */
        if (size < 4 || size > length - at)
            return;
        at += size;
    }
}

/* The length on the wire of an isochronous transfer that came in. Old versions of libpcap wrote the length of the whole
 * buffer; but its parts are scattered, and where the last one ends counts (pcap-usb-linux-common.c, fix_linux_usb_mmapped_length). */
static uint32_t usb_length(const uint8_t *packet, uint32_t caplen, uint32_t wirelen)
{
    if (caplen < USB_MMAPPED_HEADER || packet[USB_NO_DATA] || packet[USB_TRANSFER] != ISOCHRONOUS || packet[USB_EVENT] != COMPLETE ||
        !(packet[USB_ENDPOINT] & INCOMING))
        return wirelen;
    uint64_t descriptors = word_at(packet + USB_DESCRIPTORS), head = USB_MMAPPED_HEADER + descriptors * USB_DESCRIPTOR;
    if (wirelen != head + word_at(packet + USB_URB_LENGTH))
        return wirelen;
    uint32_t last = 0;
    for (uint32_t at = USB_MMAPPED_HEADER; descriptors > 0 && caplen - at >= USB_DESCRIPTOR; descriptors--, at += USB_DESCRIPTOR) {
        uint32_t size = word_at(packet + at + 8), end = word_at(packet + at + 4) + size;
        if (size != 0 && end > last)
            last = end;
    }
    uint32_t corrected = (uint32_t)head + last;
    if (corrected >= caplen)
        wirelen = corrected;
    return wirelen < caplen ? caplen : wirelen;
}

int is_corrected(uint32_t linktype, int swapped)
{
    switch (linktype) {
    case USB_LINUX_MMAPPED:
        return 1;
    case LINUX_SLL:
    case LINUX_SLL2:
    case NFLOG:
    case PFLOG:
    case USB_LINUX:
        return swapped;
    }
    return 0;
}

void correct_packets(const uint32_t *linktypes, int swapped, uint8_t *buffer, struct record *records, uint32_t count)
{
    for (struct record *record = records; record < records + count; record++) {
        if (record->interface == NOT_A_PACKET || !is_corrected(linktypes[record->interface], swapped))
            continue;
        uint8_t *packet = buffer + record->data;
        uint32_t caplen = record->caplen, length = caplen < record->wirelen ? caplen : record->wirelen;
        switch (linktypes[record->interface]) {
        case LINUX_SLL:
            turn_cooked(SLL_CAN_NUMBERS, 14, packet, length);
            break;
        case LINUX_SLL2:
            turn_cooked(SLL2_CAN_NUMBERS, 0, packet, length);
            break;
        case NFLOG:
            turn_nflog(packet, caplen, length);
            break;
        case PFLOG:
            turn_pflog(packet, length);
            break;
        case USB_LINUX:
            turn_usb(0, packet, caplen);
            break;
        case USB_LINUX_MMAPPED:
            if (swapped)
                turn_usb(1, packet, caplen);
            record->wirelen = usb_length(packet, caplen, record->wirelen);
        }
    }
}
