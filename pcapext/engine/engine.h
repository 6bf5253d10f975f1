/* The engine: what pcapext does to every packet, in C.
 *
 * In:  programs of classic BPF that may load flow keys, and buffers with records of a capture in them.
 * Out: verdicts, flow keys, descriptions of the records, and records written.
 *
 * Five parts, each over plain buffers and without state between calls: walk.c finds the flow keys of a packet, program.c runs programs,
 * records.c finds the records in a buffer, pseudo.c corrects their packets, write.c writes those that were selected. Nothing here reads a
 * file, allocates in proportion to what a file says, or calls Python: a call can run without Python's lock. Lines between the two
 * marks are what Python sees.
 */
#ifndef PCAPEXT_ENGINE_H
#define PCAPEXT_ENGINE_H

#include <stddef.h>
#include <stdint.h>

/* For Python: begin */

/* ---- walk.c: the flow keys of a packet ---- */

/* The flow keys, as flowkeys.py tells them. */
struct flow_keys {
    uint32_t nhoff, nproto, thoff, tproto, poff, depth, lhoff;
};

/* How much of everything there is room for in a table. */
enum {
    KEYS = 7,
    MOST_PAIRS = 16,
    MOST_PARTS = 4,
    MOST_PREFIXES = 4,
    MOST_ENCAPSULATIONS = 64,
    MOST_EXTENSION_HEADERS = 16,
    MOST_BOUNDS = 8,
};

/* The words of layout.py, and the rows of encapsulation.py that are written in them; what they mean is told there. */

/* `size` is 0 where there is no such field. */
struct field {
    int16_t offset;
    uint8_t size, shift;
    uint32_t mask;
};

struct equals {
    struct field field;
    uint32_t value;
};

/* `most` of `field`, but no more, times `bytes`: IfSet where `most` is 1, else Counted. */
struct part {
    struct field field;
    uint32_t most, bytes;
};

struct length {
    uint32_t fixed, base;
    uint32_t count;
    struct part parts[MOST_PARTS];
};

enum next_kind { NEXT_ALWAYS, NEXT_BY_ETHERTYPE, NEXT_BY_NUMBER, NEXT_BY_NIBBLE };

struct pair {
    uint32_t number;
    uint16_t ethertype;
};

struct next {
    int kind;
    uint16_t ethertype;  /* NEXT_ALWAYS */
    struct field field;  /* NEXT_BY_ETHERTYPE, NEXT_BY_NUMBER */
    uint32_t count;      /* NEXT_BY_NUMBER, NEXT_BY_NIBBLE */
    struct pair pairs[MOST_PAIRS];
};

struct prefix {
    struct equals test;
    struct length length;
};

struct extensions {
    struct field flag, first;
    struct length length;
    uint32_t bound; /* the setting itself */
};

struct encapsulation {
    struct next next;
    struct length length;
    struct equals requires, repeats;
    struct extensions extensions;
    uint32_t prefix_count;
    struct prefix prefixes[MOST_PREFIXES];
    uint8_t begins_level;
    uint8_t is_gre; /* what stands in it may be one of `in_gre` */
    uint8_t bound;  /* an index of `bounds` */
};

struct extension_header {
    struct length length;
    struct field fragment;
};

/* What an IP protocol is, in IPv4 or in IPv6. */
struct ip_protocol {
    uint8_t encapsulation, extension_header; /* indexes; 0: it is none */
    uint8_t transport_length;
};

struct in_gre {
    uint16_t protocol;
    struct equals test;
    uint8_t encapsulation;
};

/* The walk from one link type with one choice of settings. It never changes: threads may share it. The encapsulations and extension headers
 * with index 0 are none. */
struct walk_table {
    uint32_t k[KEYS]; /* of the load of each key, in the order of `struct flow_keys` */
    uint32_t all_k;   /* of the load of as many keys as A says into M[], in the same order */
    uint32_t walked_bytes;
    uint32_t link_length;
    struct next link_next;
    uint32_t link_lhoff;
    uint32_t max_levels, extension_headers;
    uint32_t bounds[MOST_BOUNDS]; /* headers of a kind in a level; those with index 0 are not counted */
    uint8_t by_nibble[16];
    uint32_t in_gre_count;
    struct in_gre in_gre[MOST_ENCAPSULATIONS];
    struct ip_protocol ip_protocols[2][256]; /* in IPv4, in IPv6 */
    struct extension_header extensions[MOST_EXTENSION_HEADERS];
    struct encapsulation encapsulations[MOST_ENCAPSULATIONS];
    uint8_t by_ethertype[65536], by_port[65536]; /* indexes of encapsulations */
};

/* The flow keys of a packet of which `caplen` bytes were captured. */
void walk(const struct walk_table *table, const uint8_t *packet, uint32_t caplen, struct flow_keys *keys);

/* ---- program.c: the interpreter ---- */

/* An instruction, as struct sock_filter has it. */
struct instruction {
    uint16_t code;
    uint8_t jt, jf;
    uint32_t k;
};

/* What is wrong with a program. */
enum fault {
    FAULT_NONE,
    FAULT_EMPTY,      /* it has no instruction, or more than 2^24 */
    FAULT_MEMORY,     /* there is no memory for it */
    FAULT_OPCODE,     /* an opcode that the interpreter does not know */
    FAULT_SLOT,       /* a slot of M[] from 16 on */
    FAULT_DIVISION,   /* a division by the constant 0 */
    FAULT_SHIFT,      /* a shift by a constant from 32 on */
    FAULT_JUMP,       /* a jump to where no instruction is */
    FAULT_NO_RETURN,  /* the last instruction is no ret */
};

/* A program that was checked, ready to run. It never changes: threads may share it. */
struct program;

/* The program of `count` instructions. Its flow keys are those of `walk`, which must last as long; without one (NULL), loads of them are loads
 * from behind the packet. Where it cannot be run: NULL, with the fault and the index of the instruction. */
struct program *program_new(const struct instruction *instructions, uint32_t count, const struct walk_table *walk, int *fault,
                            uint32_t *index);
void program_free(struct program *program);

/* What program_run gives for a program that was stopped, since it jumps backwards and does not end. */
#define STOPPED (-1)

/* What the program returns for a packet: `caplen` bytes captured of `wirelen`. 0 rejects it. Or STOPPED. */
int64_t program_run(const struct program *program, const uint8_t *packet, uint32_t caplen, uint32_t wirelen);

/* The same for a packet that was captured whole. */
int64_t program_run_whole(const struct program *program, const uint8_t *packet, uint32_t length);

/* The same; each instruction that runs adds one to its element of `counts`. */
int64_t program_run_counting(const struct program *program, const uint8_t *packet, uint32_t caplen, uint32_t wirelen, uint64_t *counts);

/* ---- records.c: where the records of a capture are ---- */

/* A record in a buffer: a packet of a pcap file, or a block of a pcapng file. All but `time` are counted in bytes, places from the begin of the buffer. */
struct record {
    uint64_t time;      /* pcap: seconds << 32 | fraction, as in the file; pcapng: ticks of the interface */
    uint32_t start;     /* where the record begins, and where the next one does */
    uint32_t end;
    uint32_t data;      /* where the packet begins */
    uint32_t caplen;
    uint32_t wirelen;
    uint32_t interface; /* pcapng: its number in the section; 0 in pcap; NOT_A_PACKET for a block without a packet */
};
#define NOT_A_PACKET 0xFFFFFFFFu

/* How the lengths of a pcap record stand in files of old versions (libpcap, sf-pcap.c). */
enum lengths { LENGTHS_USUAL, LENGTHS_SWAPPED, LENGTHS_MAYBE_SWAPPED };

/* What the header of a pcap file says of its records. */
struct pcap_layout {
    int swapped; /* the file is not in the byte order of this machine */
    int lengths;
    uint32_t header;  /* bytes of a record before the packet: 16 or 24 */
    uint32_t longest; /* bytes captured of a packet at most */
};

/* What the sections and interfaces of a pcapng file say of the blocks that follow. */
struct pcapng_layout {
    int swapped;
    uint32_t interfaces;     /* described so far in this section */
    const uint32_t *longest; /* of each: bytes captured of a packet at most */
    uint32_t largest;        /* bytes of a block at most */
};

/* Why a scan ended where it did. */
enum stop {
    STOP_END,        /* at the end of the region */
    STOP_FULL,       /* there is no room for another record */
    STOP_PARTIAL,    /* the record is not whole in the buffer; `needed` bytes of it must be there to go on */
    STOP_SECTION,    /* pcapng: behind a section header or the description of an interface, which the caller has to read */
    STOP_TOO_LONG,   /* the bytes captured are more than there may be: `needed` */
    STOP_BLOCK,      /* pcapng: the length of a block is no multiple of 4, too small or absurd: `needed` */
    STOP_TRAILER,    /* pcapng: the length at the end of a block is another one: `needed` */
    STOP_MAGIC,      /* pcapng: the byte-order magic of a section header is none: `needed` */
    STOP_OVERRUN,    /* pcapng: a packet is longer than its block: `needed` */
    STOP_INTERFACE,  /* pcapng: a packet of an interface that was not described: `needed` */
};

/* What a scan found. */
struct scanned {
    uint32_t count;   /* records */
    uint32_t packets; /* of them */
    uint32_t end;     /* where the next record begins */
    int stop;
    uint32_t needed;
    int64_t accepted; /* packets that the program accepts, if there is one; or STOPPED */
};

/* Describe the records that begin in [from, before) of a buffer with `filled` bytes. scan_pcap, if `program` is not NULL, puts the indexes of
 * the records whose packets it accepts into `selected`, as match_records would: while a packet is in the nearest cache anyway, and the
 * head of the next record is on its way there. */
struct scanned scan_pcap(const struct pcap_layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled,
                         struct record *records, uint32_t capacity, const struct program *program, uint32_t *selected);
struct scanned scan_pcapng(const struct pcapng_layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled,
                           struct record *records, uint32_t capacity);

/* The first place from `from` on, before `before`, where a record seems to begin, since many plausible ones follow each other.
 * NOWHERE where there is none. It is a guess: a caller has to see that the record before ends there. */
uint32_t guess_pcap(const struct pcap_layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled);
uint32_t guess_pcapng(const struct pcapng_layout *layout, const uint8_t *buffer, uint32_t from, uint32_t before, uint32_t filled);
#define NOWHERE 0xFFFFFFFFu

/* ---- pseudo.c: what libpcap corrects in packets that it reads ---- */

/* Whether there is something to correct in packets of a link type, a DLT number, in a file that is in the byte order of this machine, or
 * `swapped`. */
int is_corrected(uint32_t linktype, int swapped);

/* Correct the packets of records: numbers in the byte order of the machine that captured, and lengths on the wire. Once only: a second time
 * would turn the numbers back. `linktypes` has one for each interface. */
void correct_packets(const uint32_t *linktypes, int swapped, uint8_t *buffer, struct record *records, uint32_t count);

/* ---- program.c once more: records whose packets match ---- */

/* What match_records gives where there is no program (NULL) for the interface of a packet. */
#define NO_PROGRAM (-2)

/* Put the indexes of the records whose packets the program of their interface accepts into `selected`, in order. Blocks without a packet are
 * selected if `blocks` is not 0. Returns how many packets were selected, and `*length` is the number of indexes. Or STOPPED or
 * NO_PROGRAM, and `*length` is the index of the record. `counts` is NULL, or what program_run_counting adds to, for each interface. */
int64_t match_records(struct program *const *programs, const uint8_t *buffer, const struct record *records, uint32_t count,
                      int blocks, uint32_t *selected, uint32_t *length, uint64_t *const *counts);

/* ---- write.c: writing records ---- */

/* What the time of a record counts: of each interface. */
struct clock {
    uint64_t resolution; /* ticks a second; 0: seconds and a fraction, as in pcap */
    uint32_t unit;       /* pcap: nanoseconds of one of the fraction, 1000 or 1 */
    int64_t offset;      /* seconds to add */
};

/* The time in nanoseconds since 1970; held at the ends of the range of 64 bits. */
int64_t time_ns(const struct clock *clock, uint64_t time);

/* The times of records in nanoseconds since 1970. */
void record_times(const struct clock *clocks, const struct record *records, const uint32_t *selected, uint32_t length, int64_t *times);

/* Write the selected records as they stand in the buffer. 0, or the errno of what failed. */
int write_records(int descriptor, const uint8_t *buffer, const struct record *records, const uint32_t *selected, uint32_t length);

/* A format to write: pcap, or enhanced packet blocks of pcapng, in the byte order of this machine. */
struct form {
    int pcapng;
    uint32_t unit;             /* nanoseconds of a tick */
    uint32_t snaplen;          /* bytes captured of a packet at most */
    const uint32_t *interfaces; /* pcapng: the numbers to write for those read */
};

/* What was converted. */
struct converted {
    uint32_t records; /* taken of those selected */
    uint32_t length;  /* bytes made of them */
    int fault;        /* why the next record cannot be converted, one of the below; 0: there was no room, or there is none */
};
enum { CONVERT_TIME = 1, CONVERT_SNAPLEN = 2 };

/* Put the selected records into `output` in another format, as many as there is room for. A record takes at most 32 + 3 bytes more than its packet. */
struct converted convert_records(const struct form *form, const struct clock *clocks, const uint8_t *buffer, const struct record *records,
                                 const uint32_t *selected, uint32_t length, uint8_t *output, uint32_t capacity);

/* The same without a change of format: the selected records as they stand in the buffer. */
struct converted copy_records(const uint8_t *buffer, const struct record *records, const uint32_t *selected, uint32_t length,
                              uint8_t *output, uint32_t capacity);

/* Copy the selected records to `output`, one behind the other, their descriptions to `copies`, and where they began in the buffer to `starts`.
 * Returns how many bytes there are of them; that is all that is done where `output` is NULL. */
uint32_t keep_records(const uint8_t *buffer, const struct record *records, const uint32_t *selected, uint32_t length,
                      struct record *copies, uint32_t *starts, uint8_t *output);

/* For Python: end */

#endif
