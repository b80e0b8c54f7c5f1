/* What the sweep's two files share: a generator of randomness, bad handles, guarded outputs, a table of functions. */
#ifndef SWEEP_H
#define SWEEP_H

#include "check.h"

/* One function: makes one call of which at least one argument is bad, and checks the answer. */
typedef struct {
    const char *name;
    void (*call)(void);
} sweep_entry;

extern const sweep_entry sweep_abi[];
extern const sweep_entry sweep_kv[];
extern const sweep_entry sweep_plan[];
extern const sweep_entry sweep_sim[];
extern const sweep_entry sweep_memory[];
extern const sweep_entry sweep_pool[];
extern const sweep_entry sweep_pinned[];
extern const sweep_entry sweep_elastic[];

/* Objects that live during the whole sweep, and handles of some that do not. */
extern kavern_manager *live_manager, *other_manager;
extern kavern_stream *live_stream;
extern void *stale_manager, *stale_stream, *stale_cache, *stale_pool, *stale_elastic, *stale_shared;
extern kavern_kv_cache *live_cache;
extern kavern_pool *live_pool;
extern kavern_elastic *live_elastic;
extern kavern_shared_pool *live_shared;
/* A simulated device with a stream. */
extern kavern_manager *live_sim;
extern kavern_stream *sim_stream;

extern const char *current_function;
extern long current_call;
extern uint64_t sweep_seed;

/* Randomness: the same seed gives the same calls. */
uint64_t random_u64(void);
static inline uint64_t below(uint64_t limit) { return random_u64() % limit; }
static inline int one_in(uint64_t n) { return below(n) == 0; }

/* Chooses which of `count` arguments is bad for certain; is_bad(i) says so, and now and then for the others too. */
void choose_flaw(int count);
int is_bad(int argument);

/* A handle that is null, garbage, stale, forged from `live` or of another kind. */
void *bad_handle(void *live, void *stale, void *other_kind);
#define MANAGER(argument) \
    ((kavern_manager *)(is_bad(argument) ? bad_handle(live_manager, stale_manager, live_stream) : live_manager))
/* A stream argument: null would be the default stream, so a bad one is never null. */
void *bad_stream(void);
#define STREAM(argument) (is_bad(argument) ? bad_stream() : random_good_stream())
void *random_good_stream(void);

/* Memory that a failing call must not change. */
enum { OUT_BYTES = 16384 };
extern _Alignas(64) unsigned char out_memory[OUT_BYTES];
/* Fresh memory for an output; null or misaligned if bad. */
void *output(int argument);
/* The same for a struct that says its size, which may be bad too. */
void *sized_output(int argument, int size_argument, size_t bytes);
/* A bad pointer for anything aligned: null or misaligned. */
void *bad_pointer(void);
/* A count so large that count x size does not fit into memory. */
size_t bad_count(size_t element_bytes);
/* A size that no struct has in this version. */
uint32_t bad_struct_size(void);
uint64_t some_u64(void);
/* Not zero. */
uint64_t nonzero_u64(void);
uint32_t unknown_u32(uint32_t largest_known);
const char *bad_text(void);

/* Checks that the call was refused with a known status and has left the output alone. */
void refused(kavern_status status);
/* Notes what the output holds now, and whether it still does from a byte on. */
void remember_output(void);
int is_unchanged_from(size_t first);

#endif
