/* Fuzz target: captures, read, selected from, and written.
 *
 * In:  eight bytes that say what to do (struct plan), then a capture without its file header.
 * Checked: the records found lie in the buffer, one behind the other, and are the same however the buffer is filled and however
 * little room there is for them. Nothing but packets is corrected. What is selected is what the program says of each packet. What is written as it stands is what
 * stood there; what is converted is found again by a scan, with the packets, lengths and times it had. Times are those of arithmetic with
 * integers of 128 bits. Guesses lie where they may, at something that a scan takes.
 */
#include "fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#define MOST_INTERFACES 16
#define MOST_RECORDS 4096

struct plan {
    uint8_t pcapng;  /* bit 0: pcapng; bit 1: lengths at the ends of blocks are set right first */
    uint8_t layout;  /* bit 0: swapped; bits 1 to 3: the kind of lengths; bit 4: longer record headers, bits 5 to 7: snap length */
    uint8_t fill;    /* bytes read at a time */
    uint8_t room;    /* for that many records at a time */
    uint8_t output;  /* for that many bytes more than the longest packet */
    uint8_t form;    /* bit 0: to pcapng; bit 1: nanoseconds; bits 2 to 4: snap length */
    uint8_t clock;   /* where in their tables the clocks and link types of interfaces are */
    uint8_t place;   /* from where on to guess */
};

static const uint32_t SNAPLENS[8] = {262144, 65535, 128, 60, 16, 4, 1, 0};
static const struct clock CLOCKS[] = {
    {1000000, 0, 0}, {1000000000, 0, 0}, {1, 0, -5}, {1000, 0, 1600000000}, {1ull << 32, 0, 0}, {1ull << 63, 0, 0},
    {10000000000000000000ull, 0, 0}, {1ull << 34, 0, INT64_MIN}, {18446744073ull, 0, INT64_MAX}, {UINT64_MAX, 0, -9223372037},
};
#define CLOCK_COUNT (sizeof CLOCKS / sizeof *CLOCKS)

/* DLT numbers: Ethernet, and those whose packets are corrected. */
static const uint32_t LINKTYPES[] = {1, 113, 117, 189, 220, 239, 276};
#define LINKTYPE_COUNT (sizeof LINKTYPES / sizeof *LINKTYPES)

/* What is known of a capture at a place in it. */
struct layout {
    int is_pcapng;
    struct pcap_layout pcap;
    struct pcapng_layout pcapng;
    uint32_t longest[MOST_INTERFACES];
    struct clock clocks[MOST_INTERFACES];
};

static struct scanned scan(struct layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled,
                           struct record *records, uint32_t capacity)
{
    layout->pcapng.longest = layout->longest;
    return layout->is_pcapng ? scan_pcapng(&layout->pcapng, buffer, from, before, filled, records, capacity)
                             : scan_pcap(&layout->pcap, buffer, from, before, filled, records, capacity, NULL, NULL);
}

/* Learn what a block that is a section header or an interface says. 0 where there is no place for another interface. */
static int learn(struct layout *layout, const uint8_t *block, uint32_t length, uint8_t clock)
{
    uint32_t kind, magic = 0, snaplen = 0;
    memcpy(&kind, block, 4);
    if (kind == 0x0A0D0D0A) {
        memcpy(&magic, block + 8, 4);
        layout->pcapng.swapped = magic != 0x1A2B3C4D;
        layout->pcapng.interfaces = 0;
        return 1;
    }
    if (layout->pcapng.interfaces == MOST_INTERFACES)
        return 0;
    if (length >= 20)
        memcpy(&snaplen, block + 12, 4);
    if (layout->pcapng.swapped)
        snaplen = __builtin_bswap32(snaplen);
    layout->longest[layout->pcapng.interfaces] = snaplen == 0 || snaplen > 262144 ? 262144 : snaplen;
    layout->clocks[layout->pcapng.interfaces] = CLOCKS[(clock + layout->pcapng.interfaces) % CLOCK_COUNT];
    layout->pcapng.interfaces++;
    return 1;
}

static void check_records(const struct layout *layout, const struct scanned *scanned, const struct record *records, uint32_t from,
                          uint32_t before, uint32_t filled, uint32_t capacity)
{
    uint32_t end = from, packets = 0;
    CHECK(scanned->count <= capacity);
    for (uint32_t index = 0; index < scanned->count; index++) {
        const struct record *record = &records[index];
        CHECK(record->start == end && record->start < before && record->end > record->start && record->end <= filled);
        end = record->end;
        if (record->interface == NOT_A_PACKET)
            continue;
        packets++;
        CHECK(record->data > record->start && record->data <= record->end && record->caplen <= record->end - record->data);
        CHECK(layout->is_pcapng ? record->interface < layout->pcapng.interfaces : record->interface == 0);
        CHECK(record->caplen <= (layout->is_pcapng ? layout->longest[record->interface] : layout->pcap.longest));
    }
    CHECK(scanned->end == end && scanned->packets == packets);
    switch (scanned->stop) {
    case STOP_END: CHECK(end >= before); break;
    case STOP_FULL: CHECK(scanned->count == capacity && end < before); break;
    case STOP_PARTIAL: CHECK(end < before && scanned->needed > filled - end); break;
    case STOP_SECTION: CHECK(scanned->count > 0 && records[scanned->count - 1].interface == NOT_A_PACKET); break;
    default: CHECK(end < before && scanned->stop > STOP_SECTION && scanned->stop <= STOP_INTERFACE);
    }
}

/* ---- what a capture holds ---- */

/* All records of the capture, by one scan after the other of all its bytes. */
static struct record everything[MOST_RECORDS];
static uint32_t everything_count;

/* Find the records again, a few bytes and a few records at a time: they and the end must be the same. */
static void read_in_pieces(const struct plan *plan, struct layout layout, const uint8_t *capture, uint32_t size, const struct scanned *whole)
{
    uint32_t base = 0, filled = 0, index = 0, capacity = 1 + plan->room % 16, step = 1 + plan->fill;
    for (;;) {
        uint8_t *buffer = copy_of(capture + base, filled);
        struct record *records = memory(capacity * sizeof *records);
        struct scanned scanned = scan(&layout, buffer, 0, filled, filled, records, capacity);
        check_records(&layout, &scanned, records, 0, filled, filled, capacity);
        CHECK(index + scanned.count <= everything_count);
        for (uint32_t at = 0; at < scanned.count; at++, index++) {
            struct record record = records[at];
            record.start += base;
            record.end += base;
            record.data += record.interface == NOT_A_PACKET ? 0 : base;
            CHECK(memcmp(&record, &everything[index], sizeof record) == 0);
        }
        int again = scanned.stop == STOP_FULL;
        if (scanned.stop == STOP_SECTION && !(whole->stop == STOP_SECTION && index == everything_count)) {
            uint32_t start = records[scanned.count - 1].start;
            CHECK(learn(&layout, buffer + start, scanned.end - start, plan->clock));
            again = 1;
        }
        free(records);
        free(buffer);
        base += scanned.end;
        filled -= scanned.end;
        if (again)
            continue;
        if ((scanned.stop == STOP_END || scanned.stop == STOP_PARTIAL) && filled < size - base) {
            uint32_t wanted = scanned.stop == STOP_PARTIAL && scanned.needed > filled + step ? scanned.needed : filled + step;
            filled = wanted < size - base ? wanted : size - base;
            continue;
        }
        CHECK(index == everything_count && base == whole->end);
        CHECK(scanned.stop == whole->stop);
        CHECK(scanned.stop == STOP_END || scanned.stop == STOP_SECTION || scanned.needed == whole->needed);
        return;
    }
}

/* Find the records that begin in a region: those of all that do. */
static void read_region(struct layout *layout, const uint8_t *capture, uint32_t from, uint32_t before, uint32_t size,
                        const struct record *all, uint32_t count)
{
    struct record *records = memory((count + 1) * sizeof *records);
    struct scanned scanned = scan(layout, capture, from, before, size, records, count + 1);
    check_records(layout, &scanned, records, from, before, size, count + 1);
    CHECK(memcmp(records, all, scanned.count * sizeof *records) == 0);
    CHECK(scanned.count == count || all[scanned.count].start >= before);
    free(records);
}

static int is_sane(const struct scanned *scanned)
{
    return scanned->count > 0 || scanned->stop == STOP_PARTIAL || scanned->stop == STOP_OVERRUN || scanned->stop == STOP_INTERFACE ||
           scanned->stop == STOP_TOO_LONG;
}

static void check_guess(struct layout *layout, const uint8_t *capture, uint32_t size, uint32_t from)
{
    struct record record;
    layout->pcapng.longest = layout->longest;
    uint32_t before = from + (size - from) / 2;
    uint32_t place = layout->is_pcapng ? guess_pcapng(&layout->pcapng, capture, from, before, size)
                                       : guess_pcap(&layout->pcap, capture, from, before, size);
    if (place == NOWHERE)
        return;
    CHECK(place >= from && place < before);
    struct scanned scanned = scan(layout, capture, place, size, size, &record, 1);
    CHECK(is_sane(&scanned));
    CHECK(layout->is_pcapng || scanned.count == 1);
}

/* ---- what is done with the records of one layout ---- */

/* Accepts packets with an odd byte at their begin: ldb [0]; jset #1; ret. */
static const struct instruction ODD[] = {{0x30, 0, 0, 0}, {0x45, 0, 1, 1}, {0x06, 0, 0, 262144}, {0x06, 0, 0, 0}};

static int64_t expected_time(const struct clock *clock, uint64_t time)
{
    __int128 value = clock->resolution == 0 ? (__int128)(time >> 32) * 1000000000 + (__int128)(uint32_t)time * clock->unit
                                            : (__int128)time * 1000000000 / clock->resolution;
    value += (__int128)clock->offset * 1000000000;
    return value > INT64_MAX ? INT64_MAX : value < INT64_MIN ? INT64_MIN : (int64_t)value;
}

/* Writes as they stand: in pieces of little room, and by the system. Both must give the bytes of the records, one after the other. */
static void check_copies(const struct plan *plan, struct layout *layout, const uint8_t *buffer, const struct record *records,
                         const uint32_t *selected, uint32_t length)
{
    uint32_t total = 0, done = 0, longest = 0;
    for (uint32_t index = 0; index < length; index++) {
        uint32_t size = records[selected[index]].end - records[selected[index]].start;
        longest = size > longest ? size : longest;
        total += size;
    }
    uint8_t *expected = memory(total), *written = memory(total);
    for (uint32_t index = 0, at = 0; index < length; index++) {
        const struct record *record = &records[selected[index]];
        memcpy(expected + at, buffer + record->start, record->end - record->start);
        at += record->end - record->start;
    }
    uint32_t capacity = longest + plan->output % 64;
    for (uint32_t at = 0; at < length;) {
        uint8_t *output = memory(capacity);
        struct converted copied = copy_records(buffer, records, selected + at, length - at, output, capacity);
        CHECK(copied.fault == 0 && copied.records > 0 && copied.length <= capacity && copied.length <= total - done);
        CHECK(memcmp(output, expected + done, copied.length) == 0);
        at += copied.records;
        done += copied.length;
        free(output);
    }
    CHECK(done == total);
    if (length > 0) {
        uint8_t none;
        struct converted copied = copy_records(buffer, records, selected, length, &none, 0);
        CHECK(copied.records == 0 && copied.length == 0);
    }

    static int file = -1;
    if (file < 0)
        file = memfd_create("written", 0);
    CHECK(file >= 0 && ftruncate(file, 0) == 0 && lseek(file, 0, SEEK_SET) == 0);
    CHECK(write_records(file, buffer, records, selected, length) == 0);
    CHECK(lseek(file, 0, SEEK_CUR) == (off_t)total);
    CHECK(pread(file, written, total, 0) == (ssize_t)total && (total == 0 || memcmp(written, expected, total) == 0));

    /* A scan finds what was written, where no record of it changes what is known of the others. */
    struct record *again = memory((length + 1) * sizeof *again);
    struct scanned scanned = scan(layout, expected, 0, total, total, again, length + 1);
    check_records(layout, &scanned, again, 0, total, total, length + 1);
    CHECK(scanned.stop == STOP_SECTION || (scanned.stop == STOP_END && scanned.count == length));
    for (uint32_t index = 0; index < scanned.count; index++) {
        const struct record *was = &records[selected[index]], *is = &again[index];
        CHECK(is->end - is->start == was->end - was->start && is->interface == was->interface);
        CHECK(is->time == was->time && is->caplen == was->caplen && is->wirelen == was->wirelen);
    }
    free(again);
    free(written);
    free(expected);
}

static void check_converted(const struct form *form, const struct clock *clock, const uint8_t *buffer, const struct record *was,
                            const uint8_t *output, const struct record *is)
{
    int64_t time = expected_time(clock, was->time);
    CHECK(is->caplen == was->caplen && is->wirelen == was->wirelen);
    CHECK(is->end - is->start == (form->pcapng ? 32 + (was->caplen + 3) / 4 * 4 : 16 + was->caplen));
    CHECK(memcmp(output + is->data, buffer + was->data, was->caplen) == 0);
    if (form->pcapng) {
        CHECK(is->interface == form->interfaces[was->interface]);
        CHECK(is->time == (uint64_t)time / form->unit);
    } else if (clock->resolution == 0 && clock->unit == form->unit) {
        CHECK(is->time == was->time);
    } else {
        CHECK(is->time >> 32 == (uint64_t)time / 1000000000 && (uint32_t)is->time == (uint64_t)time % 1000000000 / form->unit);
    }
}

/* Converts the records of one layout, one output of little room after the other; what cannot be converted is left out, for a reason. */
static void check_conversions(const struct plan *plan, struct layout *layout, const uint8_t *buffer, const struct record *records,
                              const uint32_t *selected, uint32_t length)
{
    uint32_t numbers[MOST_INTERFACES], longest = 0;
    for (uint32_t index = 0; index < MOST_INTERFACES; index++)
        numbers[index] = MOST_INTERFACES - 1 - index;
    for (uint32_t index = 0; index < length; index++)
        if (records[selected[index]].interface != NOT_A_PACKET && records[selected[index]].caplen > longest)
            longest = records[selected[index]].caplen;
    struct form form = {plan->form & 1, plan->form & 2 ? 1 : 1000, SNAPLENS[plan->form >> 2 & 7], numbers};
    uint32_t capacity = longest + 35 + plan->output % 64;
    struct layout made = {.is_pcapng = form.pcapng, .pcap = {0, LENGTHS_USUAL, 16, form.snaplen}};
    made.pcapng = (struct pcapng_layout){0, MOST_INTERFACES, NULL, UINT32_MAX};
    for (uint32_t index = 0; index < MOST_INTERFACES; index++)
        made.longest[index] = form.snaplen;

    for (uint32_t at = 0; at < length;) {
        uint8_t *output = memory(capacity);
        struct converted converted = convert_records(&form, layout->clocks, buffer, records, selected + at, length - at, output, capacity);
        CHECK(converted.length <= capacity && converted.records <= length - at && converted.fault >= 0 && converted.fault <= CONVERT_SNAPLEN);
        uint8_t *exact = copy_of(output, converted.length);
        struct record *again = memory((converted.records + 1) * sizeof *again);
        struct scanned scanned = scan(&made, exact, 0, converted.length, converted.length, again, converted.records + 1);
        check_records(&made, &scanned, again, 0, converted.length, converted.length, converted.records + 1);
        CHECK(scanned.stop == STOP_END);
        uint32_t found = 0;
        for (uint32_t index = 0; index < converted.records; index++) {
            const struct record *was = &records[selected[at + index]];
            if (was->interface == NOT_A_PACKET)
                continue;
            CHECK(found < scanned.count);
            check_converted(&form, &layout->clocks[was->interface], buffer, was, exact, &again[found++]);
        }
        CHECK(found == scanned.count);
        free(again);
        free(exact);
        free(output);
        at += converted.records;
        if (converted.fault) {
            const struct record *next = &records[selected[at]];
            int64_t time = expected_time(&layout->clocks[next->interface], next->time);
            if (converted.fault == CONVERT_SNAPLEN)
                CHECK(next->caplen > form.snaplen);
            else
                CHECK(time < 0 || (!form.pcapng && time / 1000000000 > UINT32_MAX));
            at++;
        } else {
            CHECK(converted.records > 0 || at == length);
        }
    }
}

/* Correct the packets, in a copy: nothing else may change, and of the records only the lengths on the wire. */
static void check_corrections(const struct plan *plan, const struct layout *layout, const uint8_t *buffer, uint32_t size,
                              const struct record *records, uint32_t count)
{
    uint32_t linktypes[MOST_INTERFACES];
    for (uint32_t index = 0; index < MOST_INTERFACES; index++)
        linktypes[index] = LINKTYPES[(plan->clock + index) % LINKTYPE_COUNT];
    uint8_t *corrected = copy_of(buffer, size);
    struct record *described = copy_of(records, count * sizeof *records);
    correct_packets(linktypes, layout->is_pcapng ? layout->pcapng.swapped : layout->pcap.swapped, corrected, described, count);
    uint32_t place = 0;
    for (uint32_t index = 0; index < count; index++) {
        struct record was = records[index], is = described[index];
        if (was.interface != NOT_A_PACKET) {
            is.wirelen = was.wirelen;
            CHECK(memcmp(corrected + place, buffer + place, was.data - place) == 0);
            place = was.data + was.caplen;
        }
        CHECK(memcmp(&was, &is, sizeof was) == 0);
    }
    CHECK(size == place || memcmp(corrected + place, buffer + place, size - place) == 0);
    free(described);
    free(corrected);
}

/* A scan that asks the packets at once finds the same records, and selects what the program says of each. */
static void check_early(const struct layout *layout, const uint8_t *buffer, const struct record *records, uint32_t count,
                        const struct program *program)
{
    struct record *found = memory(count * sizeof *found);
    uint32_t *selected = memory(count * sizeof *selected), end = records[count - 1].end, at = 0;
    struct scanned scanned = scan_pcap(&layout->pcap, buffer, records[0].start, end, end, found, count, program, selected);
    CHECK(scanned.count == count && scanned.end == end);
    for (uint32_t index = 0; index < count; index++) {
        CHECK(found[index].start == records[index].start && found[index].data == records[index].data);
        if (program_run(program, buffer + found[index].data, found[index].caplen, found[index].wirelen) == 0)
            continue;
        CHECK(at < scanned.accepted && selected[at] == index);
        at++;
    }
    CHECK(at == scanned.accepted);
    free(selected);
    free(found);
}

static void use_records(const struct plan *plan, struct layout *layout, const uint8_t *buffer, const struct record *records, uint32_t count)
{
    int fault;
    uint32_t place, length = 0, interfaces = layout->is_pcapng ? layout->pcapng.interfaces : 1;
    struct program *odd = program_new(ODD, sizeof ODD / sizeof *ODD, NULL, &fault, &place), **programs = memory((interfaces + 1) * sizeof *programs);
    uint64_t counts[sizeof ODD / sizeof *ODD] = {0}, **each = memory((interfaces + 1) * sizeof *each);
    uint32_t *selected = memory(count * sizeof *selected), *counted = memory(count * sizeof *counted), at = 0;
    int64_t packets = 0, *times = memory(count * sizeof *times);
    int blocks = plan->form >> 5 & 1;
    CHECK(odd != NULL);
    for (uint32_t index = 0; index < interfaces; index++) {
        programs[index] = odd;
        each[index] = counts;
    }

    int64_t matched = match_records(programs, buffer, records, count, blocks, selected, &length, NULL);
    CHECK(length <= count);
    for (uint32_t index = 0; index < count; index++) {
        const struct record *record = &records[index];
        int is_packet = record->interface != NOT_A_PACKET, accepted = blocks;
        if (is_packet)
            accepted = program_run(odd, buffer + record->data, record->caplen, record->wirelen) != 0;
        if (!accepted)
            continue;
        CHECK(at < length && selected[at] == index);
        at++;
        packets += is_packet;
    }
    CHECK(at == length && matched == packets);
    CHECK(match_records(programs, buffer, records, count, blocks, counted, &at, each) == matched && at == length);
    CHECK(memcmp(selected, counted, length * sizeof *selected) == 0);

    if (!layout->is_pcapng && count)
        check_early(layout, buffer, records, count, odd);
    check_copies(plan, layout, buffer, records, selected, length);
    check_conversions(plan, layout, buffer, records, selected, length);
    if (!blocks) {
        record_times(layout->clocks, records, selected, length, times);
        for (uint32_t index = 0; index < length; index++) {
            const struct record *record = &records[selected[index]];
            CHECK(times[index] == expected_time(&layout->clocks[record->interface], record->time));
        }
    }

    /* Without a program for an interface, matching stops at its first packet. */
    programs[0] = NULL;
    matched = match_records(programs, buffer, records, count, blocks, selected, &length, NULL);
    CHECK(matched == NO_PROGRAM ? length < count && records[length].interface == 0 : matched >= 0);
    free(times);
    free(counted);
    free(selected);
    free(each);
    free(programs);
    program_free(odd);
}

/* Give blocks the right length at their end, which the fuzzer would seldom guess. */
static void set_trailers(uint8_t *capture, uint32_t size, int swapped)
{
    for (uint32_t at = 0; size - at >= 12;) {
        uint32_t word, length;
        memcpy(&word, capture + at, 4);
        memcpy(&length, capture + at + 4, 4);
        if (word == 0x0A0D0D0A) {
            memcpy(&word, capture + at + 8, 4);
            swapped = word != 0x1A2B3C4D;
        }
        uint32_t usual = swapped ? __builtin_bswap32(length) : length;
        if (usual < 12 || usual % 4 != 0 || usual > size - at)
            return;
        memcpy(capture + at + usual - 4, &length, 4);
        at += usual;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_given)
{
    struct input input = {bytes, size_given};
    struct plan plan;
    take(&input, &plan, sizeof plan);
    uint32_t size = (uint32_t)input.left;
    uint8_t *capture = copy_of(input.bytes, size);
    struct layout first = {
        .is_pcapng = plan.pcapng & 1,
        .pcap = {plan.layout & 1, (plan.layout >> 1 & 7) % 3, plan.layout & 16 ? 24 : 16, SNAPLENS[plan.layout >> 5]},
        .pcapng = {plan.layout & 1, 0, NULL, 16 << 20},
        .clocks = {{0, plan.clock & 1 ? 1 : 1000, 0}},
    };
    if (first.is_pcapng && plan.pcapng & 2)
        set_trailers(capture, size, first.pcapng.swapped);

    /* All at once; what one layout describes is then used. */
    struct layout layout = first;
    struct scanned scanned;
    uint32_t from = 0;
    everything_count = 0;
    for (;;) {
        uint32_t capacity = MOST_RECORDS - everything_count;
        struct record *records = everything + everything_count;
        scanned = scan(&layout, capture, from, size, size, records, capacity);
        check_records(&layout, &scanned, records, from, size, size, capacity);
        everything_count += scanned.count;
        if (scanned.count > 0 && scanned.stop != STOP_FULL) {
            read_region(&layout, capture, from, from + plan.place % (size - from + 1), size, records, scanned.count);
            check_corrections(&plan, &layout, capture, size, records, scanned.count);
            use_records(&plan, &layout, capture, records, scanned.count);
        }
        if (everything_count == MOST_RECORDS || scanned.stop != STOP_SECTION)
            break;
        uint32_t start = records[scanned.count - 1].start;
        from = scanned.end;
        if (!learn(&layout, capture + start, from - start, plan.clock))
            break;
    }
    if (everything_count < MOST_RECORDS) {
        read_in_pieces(&plan, first, capture, size, &scanned);
        if (size > 0)
            check_guess(&layout, capture, size, plan.place % size);
    }
    free(capture);
    return 0;
}
