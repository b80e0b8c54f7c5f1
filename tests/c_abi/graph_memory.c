/* Device memory and CUDA graphs: what a capture allocates stays its own until it is given up, half-empty pages under an
   idle graph share memory and the graph still finds every byte, and a block that a second stream uses is nobody else's
   before that stream is past it. Needs a GPU. */
#include "driver.h"

enum { NOT_READY = 600, LAUNCHES = 5 };
static const uint64_t SLOT = UINT64_C(64) << 10, PAGE = UINT64_C(2) << 20;

/* A block with the byte that all of it holds. */
typedef struct {
    uint64_t address, bytes;
    unsigned char value;
} block;

static void set(uint64_t address, unsigned char value, uint64_t bytes, void *stream) {
    DRIVER(cuMemsetD8Async, (unsigned long long)address, value, (size_t)bytes, stream);
}

static void copy(uint64_t target, uint64_t source, uint64_t bytes, void *stream) {
    DRIVER(cuMemcpyDtoDAsync_v2, (unsigned long long)target, (unsigned long long)source, (size_t)bytes, stream);
}

static void *own_stream(kavern_manager *manager) {
    void *stream = NULL;
    DRIVER(cuStreamCreate, &stream, 1u); /* not ordered with the default stream */
    OK(kavern_manager_stream_register(manager, stream));
    return stream;
}

static void end_stream(kavern_manager *manager, void *stream) {
    OK(kavern_stream_synchronize(manager, stream));
    OK(kavern_manager_stream_unregister(manager, stream));
    DRIVER(cuStreamDestroy_v2, stream);
}

static void *instantiated(void *graph) {
    void *executable = NULL;
    DRIVER(cuGraphInstantiateWithFlags, &executable, graph, 0ULL);
    DRIVER(cuGraphDestroy, graph);
    return executable;
}

/* The streams that work on the memory are idle. */
static const unsigned char *seen(uint64_t address, uint64_t bytes) {
    static unsigned char *room;
    static uint64_t room_bytes;
    if (room_bytes < bytes) {
        free(room);
        room = malloc(bytes);
        CHECK(room != NULL);
        room_bytes = bytes;
    }
    DRIVER(cuMemcpyDtoH_v2, room, (unsigned long long)address, (size_t)bytes);
    return room;
}

static int holds(uint64_t address, unsigned char value, uint64_t bytes) {
    const unsigned char *found = seen(address, bytes);
    return found[0] == value && memcmp(found, found + 1, bytes - 1) == 0;
}

static int overlap(block a, block b) { return a.address < b.address + b.bytes && b.address < a.address + a.bytes; }

static uint64_t checksum(uint64_t address, uint64_t bytes) {
    const unsigned char *found = seen(address, bytes);
    uint64_t sum = UINT64_C(14695981039346656037);
    for (uint64_t i = 0; i < bytes; ++i) sum = (sum ^ found[i]) * UINT64_C(1099511628211);
    return sum;
}

/* ----------------------------------------------------------------- a capture that allocates, frees, allocates again */

enum { CAPTURED = 6, OTHERS = 600, AGAIN = 400 };

static void a_capture_keeps_what_it_allocated(void) {
    /* Slots of a page, runs of granules, and addresses of its own. */
    static const uint64_t sizes[CAPTURED] = {4096, 65536, 200000, UINT64_C(1) << 20, UINT64_C(5) << 20,
                                             UINT64_C(40) << 20};
    kavern_manager *manager = open_manager(test_device());
    OK(kavern_warmup(manager));
    void *stream = own_stream(manager), *second = own_stream(manager), *graph = NULL;
    uint64_t used = 0;
    /* The thread has a cache for the stream before the capture. */
    OK(kavern_alloc(manager, SLOT, 0, stream, 0, &used));
    OK(kavern_free(manager, used, stream));

    block captured[CAPTURED];
    OK(kavern_capture_begin(manager, stream));
    DRIVER(cuStreamBeginCapture_v2, stream, 0); /* the strictest mode */
    for (int i = 0; i < CAPTURED; ++i) {
        uint64_t first = 0;
        captured[i] = (block){.bytes = sizes[i], .value = (unsigned char)(0xa0 + i)};
        OK(kavern_alloc(manager, sizes[i], 0, stream, 0, &first));
        set(first, 0x11, sizes[i], stream);
        OK(kavern_free(manager, first, stream));
        /* The graph runs in order, so what it has freed serves the rest of it. */
        OK(kavern_alloc(manager, sizes[i], 0, stream, 0, &captured[i].address));
        CHECK(captured[i].address == first);
        set(captured[i].address, captured[i].value, sizes[i], stream);
    }
    for (int i = 0; i < CAPTURED; ++i)
        for (int j = 0; j < i; ++j) CHECK(!overlap(captured[i], captured[j]));
    /* The first half is freed inside of the capture, the rest when it has ended. */
    for (int i = 0; i < CAPTURED / 2; ++i) OK(kavern_free(manager, captured[i].address, stream));
    DRIVER(cuStreamEndCapture, stream, &graph);
    void *executable = instantiated(graph);
    for (int i = CAPTURED / 2; i < CAPTURED; ++i) OK(kavern_free(manager, captured[i].address, second));
    for (int i = 0; i < CAPTURED; ++i)
        EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_free(manager, captured[i].address, stream));

    /* Others of the same and of other sizes, on both streams, never lie there. Some go again, and leave pages empty. */
    static block others[OTHERS];
    uint64_t state = 1;
    for (int i = 0; i < OTHERS; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        void *on = i % 2 == 0 ? stream : second;
        uint64_t bytes = i < 2 * CAPTURED ? sizes[i / 2] : i % 3 == 0 ? SLOT : 256 + (state >> 33) % 600000;
        others[i] = (block){.bytes = bytes, .value = (unsigned char)(i % 149)};
        OK(kavern_alloc(manager, bytes, 0, on, 0, &others[i].address));
        for (int j = 0; j < CAPTURED; ++j) CHECK(!overlap(others[i], captured[j]));
        set(others[i].address, others[i].value, bytes, on);
    }
    for (int i = 0; i < OTHERS; ++i)
        if (i % 4 == 3) {
            OK(kavern_free(manager, others[i].address, i % 2 == 0 ? stream : second));
            others[i].bytes = 0;
        }
    OK(kavern_stream_synchronize(manager, second));
    for (int launch = 0; launch < LAUNCHES; ++launch) {
        for (int i = 0; i < CAPTURED; ++i) set(captured[i].address, 0x77, captured[i].bytes, stream);
        DRIVER(cuGraphLaunch, executable, stream);
        OK(kavern_stream_synchronize(manager, stream));
        for (int i = 0; i < CAPTURED; ++i) CHECK(holds(captured[i].address, captured[i].value, captured[i].bytes));
        for (int i = 0; i < OTHERS; ++i)
            if (others[i].bytes != 0) CHECK(holds(others[i].address, others[i].value, others[i].bytes));
        /* Between two launches memory is short of nothing, but what is empty goes, and what is half empty is shared. */
        kavern_defragment_result done = {.struct_size = sizeof done};
        if (launch == 1) OK(kavern_manager_trim(manager, NULL));
        if (launch == 2) OK(kavern_manager_defragment(manager, 0, &done));
    }

    /* Given up, it is memory like any other: the next requests of these sizes get it. */
    DRIVER(cuGraphExecDestroy, executable);
    OK(kavern_capture_release(manager, stream, stream));
    for (int i = 0; i < CAPTURED; ++i) {
        static uint64_t again[AGAIN];
        int count = 0, is_back = 0;
        while (count < (sizes[i] > PAGE ? 4 : AGAIN) && !is_back) {
            OK(kavern_alloc(manager, sizes[i], 0, stream, 0, &again[count]));
            is_back = again[count++] == captured[i].address;
        }
        CHECK(is_back);
        while (count > 0) OK(kavern_free(manager, again[--count], stream));
    }
    for (int i = 0; i < OTHERS; ++i)
        if (others[i].bytes != 0) {
            CHECK(holds(others[i].address, others[i].value, others[i].bytes));
            OK(kavern_free(manager, others[i].address, stream));
        }
    kavern_memory_statistics left = {.struct_size = sizeof left};
    OK(kavern_memory_stats(manager, &left));
    CHECK(left.live_count == 0 && left.live_bytes == 0);
    OK(kavern_manager_validate(manager));
    end_stream(manager, stream);
    end_stream(manager, second);
    OK(kavern_manager_destroy(&manager));
    puts("what a capture allocated was nobody else's until it was given up");
}

/* --------------------------------------------------------------------------- pages that share memory under a graph */

enum { BLOCKS = 32 * 32, HEAD = 4096 };

static void a_graph_finds_its_blocks_on_shared_pages(void) {
    static uint64_t live[BLOCKS], sums[BLOCKS];
    int count = 0;
    kavern_manager *manager = open_manager(test_device());
    OK(kavern_warmup(manager));
    void *stream = own_stream(manager), *graph = NULL;
    for (int i = 0; i < BLOCKS; ++i) OK(kavern_alloc(manager, SLOT, 0, stream, 0, &live[i]));
    /* Every eighth slot of a page stays, at a phase that differs from page to page. */
    for (int i = 0; i < BLOCKS; ++i) {
        uint64_t slot = live[i] / SLOT % (PAGE / SLOT), page = live[i] / PAGE;
        if (slot % 8 == page % 8) {
            live[count++] = live[i];
        } else {
            OK(kavern_free(manager, live[i], stream));
        }
    }
    CHECK(count >= BLOCKS / 16 && count < BLOCKS / 4);
    uint64_t out_bytes = (uint64_t)count * SLOT, out = 0;
    OK(kavern_alloc(manager, out_bytes, 0, stream, 0, &out));
    /* No two blocks hold the same, and no block the same all through. */
    static uint32_t words[(64 << 10) / 4];
    for (int i = 0; i < count; ++i) {
        for (uint32_t w = 0; w < SLOT / 4; ++w) words[w] = (w + 1) * 2654435761u ^ (uint32_t)(i + 1) * 40503u;
        DRIVER(cuMemcpyHtoD_v2, (unsigned long long)live[i], words, (size_t)SLOT);
        sums[i] = checksum(live[i], SLOT);
        for (int j = 0; j < i; ++j) CHECK(sums[i] != sums[j]);
    }

    OK(kavern_capture_begin(manager, stream));
    DRIVER(cuStreamBeginCapture_v2, stream, 0);
    for (int i = 0; i < count; ++i) copy(out + (uint64_t)i * SLOT, live[i], SLOT, stream);
    DRIVER(cuStreamEndCapture, stream, &graph);
    void *reader = instantiated(graph);
    OK(kavern_capture_begin(manager, stream));
    DRIVER(cuStreamBeginCapture_v2, stream, 0);
    for (int i = 0; i < count; ++i) set(live[i], (unsigned char)(i % 241), HEAD, stream);
    DRIVER(cuStreamEndCapture, stream, &graph);
    void *writer = instantiated(graph);

    kavern_defragment_result done = {.struct_size = sizeof done};
    for (int launch = 0; launch < LAUNCHES; ++launch) {
        if (launch == 1) {
            OK(kavern_stream_synchronize(manager, stream));
            OK(kavern_manager_defragment(manager, 0, &done));
            /* 32 pages of which each eighth slot is live fit on 4; the output is not among them. */
            CHECK(done.meshed_pages >= 16 && done.copied_bytes >= done.meshed_pages * SLOT);
            CHECK(done.after_bytes + 16 * PAGE <= done.before_bytes);
            for (int i = 0; i < count; ++i) CHECK(checksum(live[i], SLOT) == sums[i]);
        }
        set(out, 0, out_bytes, stream);
        DRIVER(cuGraphLaunch, reader, stream);
        OK(kavern_stream_synchronize(manager, stream));
        for (int i = 0; i < count; ++i) CHECK(checksum(out + (uint64_t)i * SLOT, SLOT) == sums[i]);
    }
    /* A graph that writes reaches the same memory, and nothing but its own part of it. */
    DRIVER(cuGraphLaunch, writer, stream);
    DRIVER(cuGraphLaunch, reader, stream);
    OK(kavern_stream_synchronize(manager, stream));
    for (int i = 0; i < count; ++i) {
        for (uint32_t w = 0; w < SLOT / 4; ++w) words[w] = (w + 1) * 2654435761u ^ (uint32_t)(i + 1) * 40503u;
        memset(words, i % 241, HEAD);
        CHECK(memcmp(seen(live[i], SLOT), words, SLOT) == 0);
        CHECK(memcmp(seen(out + (uint64_t)i * SLOT, SLOT), words, SLOT) == 0);
        sums[i] = checksum(live[i], SLOT);
    }
    /* New blocks on the shared pages leave the old ones alone, and the graphs too. */
    static uint64_t fresh[BLOCKS];
    for (int i = 0; i < BLOCKS; ++i) {
        OK(kavern_alloc(manager, SLOT, 0, stream, 0, &fresh[i]));
        set(fresh[i], 0xee, SLOT, stream);
    }
    set(out, 0, out_bytes, stream);
    DRIVER(cuGraphLaunch, writer, stream);
    DRIVER(cuGraphLaunch, reader, stream);
    OK(kavern_stream_synchronize(manager, stream));
    for (int i = 0; i < count; ++i) {
        CHECK(checksum(live[i], SLOT) == sums[i] && checksum(out + (uint64_t)i * SLOT, SLOT) == sums[i]);
    }
    for (int i = 0; i < BLOCKS; ++i) {
        CHECK(holds(fresh[i], 0xee, SLOT));
        OK(kavern_free(manager, fresh[i], stream));
    }
    OK(kavern_manager_validate(manager));
    DRIVER(cuGraphExecDestroy, reader);
    DRIVER(cuGraphExecDestroy, writer);
    for (int i = 0; i < count; ++i) OK(kavern_free(manager, live[i], stream));
    OK(kavern_free(manager, out, stream));
    OK(kavern_manager_validate(manager));
    end_stream(manager, stream);
    OK(kavern_manager_destroy(&manager));
    printf("%d blocks under two graphs: %llu pages on the memory of others, %llu bytes of memory became %llu\n", count,
           (unsigned long long)done.meshed_pages, (unsigned long long)done.before_bytes,
           (unsigned long long)done.after_bytes);
}

/* ----------------------------------------------------------------------------------- a block that two streams use */

enum { SOON = 40, LATER = 300, ROUNDS = 200 };

static void a_block_of_two_streams_is_reused_behind_both(uint64_t bytes, int soon, int later) {
    kavern_manager *manager = open_manager(test_device());
    OK(kavern_warmup(manager));
    void *first = own_stream(manager), *second = own_stream(manager);
    static uint64_t taken[2 * SOON + LATER];
    int count = 0, is_back = 0;
    uint64_t shared = 0, witness = 0, busy = 0, busy_bytes = UINT64_C(1) << 30;
    OK(kavern_alloc(manager, bytes, 0, second, 0, &witness));
    OK(kavern_alloc(manager, busy_bytes, 0, second, 0, &busy));
    /* Grown beforehand, so that little time passes between the free and the reuse. */
    for (int i = 0; i < soon; ++i) OK(kavern_alloc(manager, bytes, 0, first, 0, &taken[i]));
    for (int i = 0; i < soon; ++i) OK(kavern_free(manager, taken[i], first));
    OK(kavern_alloc(manager, bytes, 0, first, 0, &shared));
    set(shared, 0x5c, bytes, first);
    set(witness, 0, bytes, second);
    OK(kavern_stream_synchronize(manager, first));
    /* The second stream reads the block when it has worked for tens of milliseconds. */
    for (int i = 0; i < ROUNDS; ++i) set(busy, (unsigned char)i, busy_bytes, second);
    copy(witness, shared, bytes, second);
    OK(kavern_record_use(manager, shared, second));
    OK(kavern_free(manager, shared, first));
    /* More than the caches have, so that the freed block itself would be next. */
    for (; count < 2 * soon; ++count) {
        OK(kavern_alloc(manager, bytes, 0, first, 0, &taken[count]));
        is_back |= taken[count] == shared;
        set(taken[count], 0xee, bytes, first);
    }
    /* Else the test has shown nothing: the second stream was done before anybody could have been too early. */
    CHECK(driver("cuStreamQuery")(second) == NOT_READY);
    /* On its own the first stream is past the block long ago; only a wait that was enqueued may hold it up. */
    if (!is_back) OK(kavern_stream_synchronize(manager, first));
    OK(kavern_stream_synchronize(manager, second));
    CHECK(holds(witness, 0x5c, bytes));
    for (; count < 2 * soon + later && !is_back; ++count) {
        OK(kavern_alloc(manager, bytes, 0, first, 0, &taken[count]));
        is_back = taken[count] == shared;
        set(taken[count], 0xee, bytes, first);
    }
    CHECK(is_back);
    OK(kavern_stream_synchronize(manager, first));
    CHECK(holds(witness, 0x5c, bytes) && holds(shared, 0xee, bytes));
    while (count > 0) OK(kavern_free(manager, taken[--count], first));
    OK(kavern_free(manager, busy, second));
    OK(kavern_free(manager, witness, second));
    OK(kavern_manager_validate(manager));
    end_stream(manager, first);
    end_stream(manager, second);
    OK(kavern_manager_destroy(&manager));
    printf("a block of %llu bytes that two streams used came back when both were past it\n",
           (unsigned long long)bytes);
}

/* A stream that the default stream waits for is captured: frees and a trim meanwhile leave its capture whole. */
static void a_capture_survives_what_others_free(void) {
    enum { COUNT = 8 };
    kavern_manager *manager = open_manager(test_device());
    void *blocking = NULL, *other = own_stream(manager), *graph = NULL;
    DRIVER(cuStreamCreate, &blocking, 0u);
    OK(kavern_manager_stream_register(manager, blocking));
    uint64_t target = 0, shared[COUNT], loose[COUNT], again = 0, given_back = 0;
    OK(kavern_alloc(manager, SLOT, 0, blocking, 0, &target));
    for (int i = 0; i < COUNT; ++i) {
        OK(kavern_alloc(manager, SLOT, 0, NULL, 0, &shared[i]));
        OK(kavern_record_use(manager, shared[i], i % 2 == 0 ? blocking : other));
        OK(kavern_alloc(manager, PAGE, 0, NULL, 0, &loose[i]));
    }
    OK(kavern_capture_begin(manager, blocking));
    DRIVER(cuStreamBeginCapture_v2, blocking, 0);
    set(target, 0x42, SLOT, blocking);
    for (int i = 0; i < COUNT; ++i) {
        OK(kavern_free(manager, shared[i], i < COUNT / 2 ? NULL : other));
        OK(kavern_free(manager, loose[i], NULL));
    }
    OK(kavern_manager_trim(manager, &given_back));
    OK(kavern_alloc(manager, 16 * PAGE, 0, other, 0, &again));
    set(again, 0x43, 16 * PAGE, other);
    DRIVER(cuStreamEndCapture, blocking, &graph);
    void *executable = instantiated(graph);
    DRIVER(cuGraphLaunch, executable, blocking);
    OK(kavern_stream_synchronize(manager, blocking));
    CHECK(holds(target, 0x42, SLOT));
    OK(kavern_free(manager, again, other));
    OK(kavern_free(manager, target, blocking));
    OK(kavern_stream_synchronize(manager, NULL));
    OK(kavern_stream_synchronize(manager, other));
    for (int i = 0; i < 3; ++i) OK(kavern_manager_trim(manager, &given_back));
    kavern_memory_statistics left = {.struct_size = sizeof left};
    OK(kavern_memory_stats(manager, &left));
    CHECK(left.live_count == 0 && left.ordered_bytes == 0);
    OK(kavern_manager_validate(manager));
    DRIVER(cuGraphExecDestroy, executable);
    end_stream(manager, blocking);
    end_stream(manager, other);
    OK(kavern_manager_destroy(&manager));
    printf("a capture beside the default stream survived frees and a trim\n");
}

int main(void) {
    if (!has_gpu()) return 0;
    /* Streams and graphs of the program's own, in the primary context that the manager retains too. */
    kavern_manager *manager = open_manager(test_device());
    void *context = NULL;
    int ordinal = 0;
    DRIVER(cuDeviceGet, &ordinal, atoi(test_device() + (test_device()[4] == ':' ? 5 : 4)));
    DRIVER(cuDevicePrimaryCtxRetain, &context, ordinal);
    DRIVER(cuCtxSetCurrent, context);
    a_capture_keeps_what_it_allocated();
    a_graph_finds_its_blocks_on_shared_pages();
    a_block_of_two_streams_is_reused_behind_both(SLOT, SOON, LATER);
    a_block_of_two_streams_is_reused_behind_both(UINT64_C(40) << 20, 2, 4);
    a_capture_survives_what_others_free();
    OK(kavern_manager_destroy(&manager));
    return 0;
}
