"""Write pcapext/_libpcap_cffi.py, cffi's description of libpcap, anew: after every change of the declarations below."""

from __future__ import annotations

from pathlib import Path

import cffi

NAME = "_libpcap_cffi.py"
PATH = Path(__file__).parent.parent / "pcapext" / NAME

#: What pcapext calls, as pcap/pcap.h, pcap/bpf.h and pcap/namedb.h of libpcap 1.5 and later declare it, and a few
#: functions of the C library, which are found through libpcap because it is linked with it.
DECLARATIONS = """
typedef struct pcap pcap_t;
typedef struct pcap_dumper pcap_dumper_t;
typedef uint32_t bpf_u_int32;

/* On some systems tv_usec is a smaller type and padding follows: only its low 32 bits are to be read. */
struct timeval { long tv_sec; long tv_usec; };
struct pcap_pkthdr { struct timeval ts; bpf_u_int32 caplen; bpf_u_int32 len; };
struct bpf_insn { unsigned short code; unsigned char jt; unsigned char jf; bpf_u_int32 k; };
struct bpf_program { unsigned int bf_len; struct bpf_insn *bf_insns; };

const char *pcap_lib_version(void);

pcap_t *pcap_open_dead_with_tstamp_precision(int linktype, int snaplen, unsigned int precision);
pcap_t *pcap_fopen_offline_with_tstamp_precision(void *file, unsigned int precision, char *errbuf);
void pcap_close(pcap_t *p);
char *pcap_geterr(pcap_t *p);
int pcap_datalink(pcap_t *p);
int pcap_snapshot(pcap_t *p);
int pcap_next_ex(pcap_t *p, struct pcap_pkthdr **header, const unsigned char **data);

pcap_t *pcap_create(const char *device, char *errbuf);
int pcap_set_snaplen(pcap_t *p, int snaplen);
int pcap_set_promisc(pcap_t *p, int promiscuous);
int pcap_can_set_rfmon(pcap_t *p);
int pcap_set_rfmon(pcap_t *p, int monitor);
int pcap_set_timeout(pcap_t *p, int milliseconds);
int pcap_set_immediate_mode(pcap_t *p, int immediate);
int pcap_set_buffer_size(pcap_t *p, int size);
int pcap_set_tstamp_type(pcap_t *p, int type);
int pcap_list_tstamp_types(pcap_t *p, int **types);
void pcap_free_tstamp_types(int *types);
int pcap_tstamp_type_name_to_val(const char *name);
const char *pcap_tstamp_type_val_to_name(int type);
int pcap_set_tstamp_precision(pcap_t *p, int precision);
int pcap_get_tstamp_precision(pcap_t *p);
int pcap_activate(pcap_t *p);
const char *pcap_statustostr(int status);

int pcap_setfilter(pcap_t *p, struct bpf_program *program);
int pcap_setdirection(pcap_t *p, int direction);
int pcap_list_datalinks(pcap_t *p, int **linktypes);
void pcap_free_datalinks(int *linktypes);
int pcap_set_datalink(pcap_t *p, int linktype);
int pcap_setnonblock(pcap_t *p, int nonblock, char *errbuf);
int pcap_getnonblock(pcap_t *p, char *errbuf);
int pcap_fileno(pcap_t *p);
int pcap_get_selectable_fd(pcap_t *p);
const struct timeval *pcap_get_required_select_timeout(pcap_t *p); /* since 1.9 */
void pcap_breakloop(pcap_t *p);
int pcap_inject(pcap_t *p, const void *packet, size_t length);
struct pcap_stat { unsigned int ps_recv; unsigned int ps_drop; unsigned int ps_ifdrop; };
int pcap_stats(pcap_t *p, struct pcap_stat *stats);

struct sockaddr;
struct pcap_addr {
    struct pcap_addr *next;
    struct sockaddr *addr; struct sockaddr *netmask; struct sockaddr *broadaddr; struct sockaddr *dstaddr;
};
typedef struct pcap_if {
    struct pcap_if *next; char *name; char *description; struct pcap_addr *addresses; bpf_u_int32 flags;
} pcap_if_t;
int pcap_findalldevs(pcap_if_t **devices, char *errbuf);
void pcap_freealldevs(pcap_if_t *devices);

pcap_dumper_t *pcap_dump_fopen(pcap_t *p, void *file);
void pcap_dump(unsigned char *dumper, const struct pcap_pkthdr *header, const unsigned char *data);
int pcap_dump_flush(pcap_dumper_t *dumper);
void pcap_dump_close(pcap_dumper_t *dumper);

int pcap_compile(pcap_t *p, struct bpf_program *program, const char *expression, int optimize, bpf_u_int32 netmask);
void pcap_freecode(struct bpf_program *program);
int bpf_validate(const struct bpf_insn *instructions, int length);
unsigned int bpf_filter(const struct bpf_insn *instructions, const unsigned char *packet, unsigned int wirelen, unsigned int caplen);

int pcap_datalink_name_to_val(const char *name);
const char *pcap_datalink_val_to_name(int linktype);
const char *pcap_datalink_val_to_description(int linktype);

bpf_u_int32 pcap_nametonetaddr(const char *name);
int pcap_nametoproto(const char *name);
int pcap_nametoeproto(const char *name);
int pcap_nametollc(const char *name);
unsigned char *pcap_ether_hostton(const char *name);

typedef struct { const char *dli_fname; void *dli_fbase; const char *dli_sname; void *dli_saddr; } Dl_info;
int dladdr(const void *address, Dl_info *info);
void *fdopen(int descriptor, const char *mode);
int fclose(void *file);
int ferror(void *file);
int getc(void *file);
int ungetc(int character, void *file);
void free(void *memory);
"""


def generate(directory: Path) -> Path:
    """Write `_libpcap_cffi.py` into a directory."""
    ffi = cffi.FFI()
    # No source: the library is opened by name at run time, so that no C compiler and no headers are needed.
    ffi.set_source("pcapext._libpcap_cffi", None)
    ffi.cdef(DECLARATIONS)
    path = directory / NAME
    ffi.emit_python_code(str(path))
    return path


if __name__ == "__main__":
    generate(PATH.parent)
