/* The walk: from the bytes of a packet to its flow keys.
 *
 * It is the walk of pcapext/dissect.py, step by step and under the same names, and reads the same rows: walk.py makes a table of them. What
 * headers look like is not known here, but for what dissect.py knows too. The head of that module tells where the walk ends
 * and why.
 *
 * An offset is an int64_t, so that no length that a packet can claim makes one overflow; NONE is Python's None. Nothing is
 * read but by `byte_at`, which sees that it is there.
 */
#include "engine.h"

/* What dissect.py calls by name. */
enum {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_IPV6 = 0x86DD,
    ETHERTYPE_MPLS = 0x8847,
    ETHERTYPE_MPLS_MULTICAST = 0x8848,
    ETHERTYPE_ETHERNET = 0x6558,
    FIRST_ETHERTYPE = 0x0600,
    ETHERNET_LENGTH = 14,
    IPV4_LENGTH = 20,
    IPV6_LENGTH = 40,
    UDP_LENGTH = 8,
    PROTOCOL_TCP = 6,
    PROTOCOL_UDP = 17,
};

#define NO_ETHERNET 0xFFFFFFFFu
#define NONE (-1)

struct data {
    const uint8_t *bytes;
    int64_t length;
};

/* Where a level begins. */
struct start {
    uint32_t nproto;
    int64_t nhoff;
    uint32_t lhoff;
};

/* A tunnel header that may begin the next level; `row` is NULL where there is none. */
struct tunnel {
    const struct encapsulation *row;
    int64_t offset;
};

static const struct tunnel NO_TUNNEL = {NULL, 0};

/* ---- The words of layout.py ---- */

static inline int has(const struct data *data, int64_t offset, int64_t size)
{
    return offset + size <= data->length;
}

static inline uint32_t byte_at(const struct data *data, int64_t offset)
{
    return offset >= 0 && offset < data->length ? data->bytes[offset] : 0;
}

static inline uint32_t half_at(const struct data *data, int64_t offset)
{
    return byte_at(data, offset) << 8 | byte_at(data, offset + 1);
}

static inline uint32_t read_field(const struct data *data, const struct field *field, int64_t header)
{
    uint32_t number = 0;
    for (uint32_t at = 0; at < field->size; at++)
        number = number << 8 | byte_at(data, header + field->offset + at);
    return (number & field->mask) >> field->shift;
}

static inline int holds(const struct data *data, const struct equals *test, int64_t header)
{
    return read_field(data, &test->field, header) == test->value;
}

static inline int64_t end_of_length(const struct data *data, const struct length *length, int64_t header)
{
    if (!has(data, header, length->fixed))
        return NONE;
    int64_t end = header + length->base;
    for (uint32_t at = 0; at < length->count; at++) {
        const struct part *part = &length->parts[at];
        uint32_t number = read_field(data, &part->field, header);
        end += (int64_t)part->bytes * (number < part->most ? number : part->most);
    }
    return end;
}

static inline int64_t in_pairs(const struct next *next, uint32_t number)
{
    for (uint32_t at = 0; at < next->count; at++)
        if (next->pairs[at].number == number)
            return next->pairs[at].ethertype;
    return NONE;
}

/* The EtherType of what stands at `end`, behind the complete header at `header`; NONE: no protocol that is known. */
static inline int64_t ethertype_behind(const struct data *data, const struct next *next, int64_t header, int64_t end)
{
    switch ((enum next_kind)next->kind) {
    case NEXT_ALWAYS:
        return next->ethertype;
    case NEXT_BY_ETHERTYPE:
        return read_field(data, &next->field, header);
    case NEXT_BY_NUMBER:
        return in_pairs(next, read_field(data, &next->field, header));
    case NEXT_BY_NIBBLE:
        return has(data, end, 1) ? in_pairs(next, byte_at(data, end) >> 4) : NONE;
    }
    return NONE;
}

static int64_t end_of_extensions(const struct data *data, const struct extensions *chain, int64_t header, int64_t offset)
{
    uint32_t kind = read_field(data, &chain->first, header);
    for (uint32_t walked = 0; walked < chain->bound && kind != 0; walked++) {
        int64_t end = end_of_length(data, &chain->length, offset);
        if (end == NONE || end == offset || !has(data, end, 0))
            return NONE;
        kind = byte_at(data, end - 1);
        offset = end;
    }
    return kind == 0 ? offset : NONE;
}

/* The byte behind the header at `offset`, or NONE where it is not complete or not of its kind. */
static inline int64_t end_of(const struct data *data, const struct encapsulation *row, int64_t offset)
{
    for (uint32_t at = 0; at < row->prefix_count; at++) {
        const struct prefix *prefix = &row->prefixes[at];
        if (!has(data, offset, prefix->test.field.size))
            return NONE;
        if (holds(data, &prefix->test, offset)) {
            offset = end_of_length(data, &prefix->length, offset);
            if (offset == NONE || !has(data, offset, 0))
                return NONE;
        }
    }
    int64_t end = end_of_length(data, &row->length, offset);
    if (end == NONE || !has(data, end, 0))
        return NONE;
    if (row->requires.field.size && !holds(data, &row->requires, offset))
        return NONE;
    if (row->extensions.flag.size && read_field(data, &row->extensions.flag, offset))
        return end_of_extensions(data, &row->extensions, offset, end);
    return end;
}

/* The encapsulation with an index, NULL for 0. */
static inline const struct encapsulation *row_at(const struct walk_table *table, uint32_t index)
{
    return index ? &table->encapsulations[index] : NULL;
}

/* ---- One level ---- */

/* Past VLAN tags, PPPoE and MPLS labels: `start` becomes the EtherType that is left and its offset. Returns the tunnel that stands there. */
static inline struct tunnel read_tags(const struct walk_table *table, const struct data *data, struct start *start)
{
    uint32_t walked[MOST_BOUNDS] = {0};
    for (;;) {
        const struct encapsulation *row = row_at(table, table->by_ethertype[(uint16_t)start->nproto]);
        if (row == NULL)
            return NO_TUNNEL;
        if (start->nproto == ETHERTYPE_MPLS_MULTICAST)
            start->nproto = ETHERTYPE_MPLS;
        if (row->begins_level)
            return (struct tunnel){row, start->nhoff};
        int64_t end = end_of(data, row, start->nhoff);
        /* NONE, or a header of no bytes, which would be read for ever; the table has none. */
        if (end <= start->nhoff || (row->bound && walked[row->bound]++ == table->bounds[row->bound]))
            return NO_TUNNEL;
        if (row->repeats.field.size && holds(data, &row->repeats, start->nhoff)) {
            start->nhoff = end;
            continue;
        }
        int64_t behind = ethertype_behind(data, &row->next, start->nhoff, end);
        if (behind == NONE) {
            if (start->nproto != ETHERTYPE_MPLS || !has(data, end, 1))
                return NO_TUNNEL;
            return (struct tunnel){row_at(table, table->by_nibble[byte_at(data, end) >> 4]), end};
        }
        start->nproto = (uint32_t)behind;
        start->nhoff = end;
    }
}

/* The offset behind the transport header, or 0 where its fixed part is not there. */
static inline uint32_t payload(const struct data *data, uint32_t tproto, uint32_t length, int64_t thoff)
{
    if (!has(data, thoff, length))
        return 0;
    if (tproto == PROTOCOL_TCP) {
        uint32_t claimed = 4 * (byte_at(data, thoff + 12) >> 4);
        length = claimed > length ? claimed : length;
    }
    return (uint32_t)(thoff + length);
}

/* Adds the keys of the IP header at nhoff and of what follows it. Returns the tunnel that stands there. */
static inline struct tunnel read_ip(const struct walk_table *table, const struct data *data, struct flow_keys *keys)
{
    const struct ip_protocol *protocols;
    int64_t ip = keys->nhoff, offset;
    uint32_t tproto;
    int later = 0;
    if (keys->nproto == ETHERTYPE_IPV4) {
        if (!has(data, ip, IPV4_LENGTH))
            return NO_TUNNEL;
        protocols = table->ip_protocols[0];
        tproto = byte_at(data, ip + 9);
        offset = ip + 4 * (byte_at(data, ip) & 0x0F);
        later = (half_at(data, ip + 6) & 0x1FFF) != 0;
    } else {
        if (!has(data, ip, IPV6_LENGTH))
            return NO_TUNNEL;
        protocols = table->ip_protocols[1];
        tproto = byte_at(data, ip + 6);
        offset = ip + IPV6_LENGTH;
    }

    for (uint32_t walked = 0; walked < table->extension_headers && !later && protocols[tproto].extension_header; walked++) {
        const struct extension_header *row = &table->extensions[protocols[tproto].extension_header];
        int64_t end = end_of_length(data, &row->length, offset);
        if (end == NONE) {
            keys->tproto = tproto;
            return NO_TUNNEL;
        }
        later = row->fragment.size && read_field(data, &row->fragment, offset) != 0;
        tproto = byte_at(data, offset);
        offset = end;
    }

    keys->tproto = tproto;
    if (!has(data, offset, 0))
        return NO_TUNNEL;
    if (later) {
        keys->poff = (uint32_t)offset;
        return NO_TUNNEL;
    }
    keys->thoff = (uint32_t)offset;
    keys->poff = payload(data, tproto, protocols[tproto].transport_length, offset);
    if (tproto != PROTOCOL_UDP)
        return (struct tunnel){row_at(table, protocols[tproto].encapsulation), offset};
    if (!has(data, offset, UDP_LENGTH))
        return NO_TUNNEL;
    return (struct tunnel){row_at(table, table->by_port[half_at(data, offset + 2)]), offset + UDP_LENGTH};
}

/* The keys of a level if the walk ends in it. Returns the tunnel that may go on. */
static inline struct tunnel read_level(const struct walk_table *table, const struct data *data, struct start start, uint32_t depth,
                                       struct flow_keys *keys)
{
    struct tunnel tunnel = read_tags(table, data, &start);
    if (start.nproto < FIRST_ETHERTYPE)
        start.nproto = 0, start.nhoff = 0;
    *keys = (struct flow_keys){.nhoff = (uint32_t)start.nhoff, .nproto = start.nproto, .depth = depth, .lhoff = start.lhoff};
    if (start.nproto == ETHERTYPE_IPV4 || start.nproto == ETHERTYPE_IPV6)
        return read_ip(table, data, keys);
    return tunnel;
}

/* ---- From one level to the next ---- */

/* The row for a header behind the GRE header at `gre`, or NULL: what follows is of the protocol that GRE names. */
static const struct encapsulation *in_gre(const struct walk_table *table, const struct data *data, int64_t protocol, int64_t gre)
{
    for (uint32_t at = 0; at < table->in_gre_count; at++) {
        const struct in_gre *row = &table->in_gre[at];
        if (row->protocol == protocol && (!row->test.field.size || holds(data, &row->test, gre)))
            return row_at(table, row->encapsulation);
    }
    return NULL;
}

/* Where the level behind a tunnel header begins. 0 where the header is not complete or not of its kind. */
static inline int enter(const struct walk_table *table, const struct data *data, struct tunnel tunnel, struct start *start)
{
    int64_t end = end_of(data, tunnel.row, tunnel.offset);
    if (end == NONE)
        return 0;
    int64_t nproto = ethertype_behind(data, &tunnel.row->next, tunnel.offset, end);
    if (nproto == NONE)
        return 0;
    if (tunnel.row->is_gre) {
        const struct encapsulation *inside = in_gre(table, data, nproto, tunnel.offset);
        if (inside != NULL) {
            end = end_of(data, inside, end);
            if (end == NONE)
                return 0;
            nproto = ETHERTYPE_ETHERNET;
        }
    }
    *start = (struct start){(uint32_t)nproto, end, NO_ETHERNET};
    if (nproto == ETHERTYPE_ETHERNET) {
        if (!has(data, end, ETHERNET_LENGTH))
            return 0;
        *start = (struct start){half_at(data, end + 12), end + ETHERNET_LENGTH, (uint32_t)end};
    }
    return 1;
}

static inline struct start first_start(const struct walk_table *table, const struct data *data)
{
    if (has(data, 0, table->link_length)) {
        int64_t nproto = ethertype_behind(data, &table->link_next, 0, table->link_length);
        if (nproto != NONE)
            return (struct start){(uint32_t)nproto, table->link_length, table->link_lhoff};
    }
    return (struct start){0, 0, table->link_lhoff};
}

void walk(const struct walk_table *table, const uint8_t *packet, uint32_t caplen, struct flow_keys *keys)
{
    struct data data = {packet, caplen < table->walked_bytes ? caplen : table->walked_bytes};
    struct start start = first_start(table, &data);
    struct tunnel tunnel = read_level(table, &data, start, 0, keys);
    for (uint32_t level = 1; level < table->max_levels && tunnel.row != NULL && enter(table, &data, tunnel, &start); level++)
        tunnel = read_level(table, &data, start, level, keys);
}
