// A KV cache of Kavern on the host device; paged.h says what for.
#include "paged.h"

#include <algorithm>

#include "failure.h"

namespace engine {

namespace {

// All chats of this program are one tenant's.
constexpr uint64_t NAMESPACE = 1;

[[noreturn]] void fail(kavern_status status, const char *what) {
    char text[1024] = "";
    kavern_last_error(text, sizeof text, nullptr);
    throw Failure(1, std::string(what) + ": " + kavern_status_name(status) + ": " + text);
}

kavern_kv_op operation(uint32_t kind, uint64_t target) {
    kavern_kv_op op{};
    op.struct_size = sizeof op;
    op.kind = kind;
    op.target = target;
    op.row = -1;
    return op;
}

}  // namespace

void check(kavern_status status, const char *what) {
    if (status < 0) fail(status, what);
}

PagedCache::PagedCache(const KvShape &shape, const PagedSettings &settings) {
    kavern_manager_config manager_config;
    check(kavern_manager_config_init(&manager_config, sizeof manager_config), "configuration");
    manager_config.device = settings.device;
    check(kavern_manager_create(&manager_config, &manager), "manager");
    try {
        kavern_kv_group group{};
        group.struct_size = sizeof group;
        group.kind = KAVERN_GROUP_FULL;
        group.layers = static_cast<uint32_t>(shape.layers);
        group.kv_heads = static_cast<uint32_t>(shape.heads);
        group.head_dim = static_cast<uint32_t>(shape.channels);
        group.dtype = shape.type == KvType::f32 ? KAVERN_F32 : KAVERN_BF16;
        group.block_tokens = static_cast<uint32_t>(settings.block_tokens);
        group.layout = KAVERN_NHD;
        kavern_kv_cache_config config;
        check(kavern_kv_cache_config_init(&config, sizeof config), "configuration");
        config.groups = &group;
        config.group_count = 1;
        config.capacity_blocks = settings.blocks;
        config.max_sequences = static_cast<uint32_t>(settings.sequences);
        config.max_batch_tokens = static_cast<uint32_t>(settings.batch_tokens);
        // Each waiting prompt may hold one of this step and one of the step before that is about to be released.
        config.max_leases = static_cast<uint32_t>(2 * settings.sequences);
        config.name = "engine";
        check(kavern_kv_cache_create(manager, &config, &cache), "cache");
        about.struct_size = sizeof about;
        check(kavern_kv_describe(cache, 0, &about), "description");
    } catch (...) {
        kavern_kv_cache_destroy(&cache);
        kavern_manager_destroy(&manager);
        throw;
    }
    rows.type = shape.type;
    rows.strides = {about.layer_stride, about.kv_stride, about.token_stride, about.head_stride};
    rows.block_tokens = about.block_tokens;
}

PagedCache::~PagedCache() {
    kavern_kv_cache_destroy(&cache);
    kavern_manager_destroy(&manager);
}

void PagedCache::match(std::vector<Lookup> &lookups) {
    if (lookups.empty()) return;
    requests.assign(lookups.size(), {});
    found.assign(lookups.size(), {});
    for (size_t i = 0; i < lookups.size(); i++) {
        requests[i].struct_size = sizeof requests[i];
        requests[i].flags = KAVERN_REQUEST_KEEP_ONE_TOKEN;
        if (!lookups[i].shares) requests[i].flags |= KAVERN_REQUEST_NO_READ | KAVERN_REQUEST_NO_STORE;
        requests[i].namespace_id = NAMESPACE;
        requests[i].tokens = lookups[i].tokens;
        requests[i].token_count = lookups[i].count;
    }
    check(kavern_kv_match(cache, requests.size(), requests.data(), found.data()), "match");
    for (size_t i = 0; i < lookups.size(); i++) {
        check(found[i].status, "match of a prompt");
        lookups[i].lease = found[i].lease;
        lookups[i].hit_tokens = found[i].hit_tokens;
    }
}

void PagedCache::step(uint64_t step, std::vector<Op> &ops) {
    operations.clear();
    std::vector<size_t> places;
    for (const Op &op : ops) {
        const size_t place = operations.size();
        places.push_back(place);
        if (op.kind == OpKind::free || op.kind == OpKind::release) {
            operations.push_back(operation(op.kind == OpKind::free ? KAVERN_OP_FREE : KAVERN_OP_RELEASE, op.target));
            continue;
        }
        const bool admits = op.kind == OpKind::admit;
        operations.push_back(operation(admits ? KAVERN_OP_ADMIT : KAVERN_OP_APPEND, op.target));
        operations.back().tokens = op.count;
        operations.back().lookahead = static_cast<uint32_t>(op.reserve);
        // The ids are known before the model runs; its writes follow before step_done, as COMMIT asks.
        operations.push_back(operation(KAVERN_OP_COMMIT, admits ? KAVERN_SEQ_OF_OP(place) : op.target));
        operations.back().tokens = op.count;
        operations.back().token_ids = op.tokens;
    }
    results.assign(operations.size(), {});
    check(kavern_kv_step(cache, step, operations.size(), operations.data(), results.data()), "step");
    for (size_t i = 0; i < ops.size(); i++) {
        const size_t place = places[i];
        const kavern_status status = results[place].status;
        ops[i].was_done = status == KAVERN_OK;
        ops[i].sequence = results[place].sequence;
        if (status != KAVERN_OK && status != KAVERN_ERR_OUT_OF_BLOCKS) fail(status, "operation of a step");
        if (status == KAVERN_OK && operations[place].kind <= KAVERN_OP_APPEND) {
            if (results[place + 1].status != KAVERN_OK) fail(results[place + 1].status, "commit");
        }
    }
}

const StepRows &PagedCache::tables(uint64_t step) {
    kavern_kv_group_tables group{};
    kavern_kv_step_tables tables{};
    tables.struct_size = sizeof tables;
    tables.groups = &group;
    tables.group_capacity = 1;
    check(kavern_kv_tables(cache, step, KAVERN_STREAM_DEFAULT, &tables), "tables");
    // This model runs on the calling threads, not on the stream, so what the call enqueued has to be over: blocks
    // that held another tenant's bytes are zeroed there.
    check(kavern_stream_synchronize(manager, KAVERN_STREAM_DEFAULT), "synchronisation");

    auto *base = reinterpret_cast<std::byte *>(static_cast<uintptr_t>(about.base_address));
    rows.sequences.resize(tables.batch_count);
    for (size_t i = 0; i < tables.batch_count; i++) {
        SequenceRows &sequence = rows.sequences[i];
        const auto row = static_cast<size_t>(tables.batch_rows_host[i]);
        sequence.length = static_cast<size_t>(tables.sequence_lengths_host[row]);
        sequence.first = static_cast<size_t>(tables.batch_starts_host[i]);
        sequence.count = static_cast<size_t>(tables.batch_starts_host[i + 1]) - sequence.first;
        const int32_t *cells = group.block_table_host + row * group.row_cells;
        sequence.blocks.resize((sequence.length + about.block_tokens - 1) / about.block_tokens);
        for (size_t b = 0; b < sequence.blocks.size(); b++) {
            sequence.blocks[b] = base + static_cast<size_t>(cells[b]) * about.block_stride;
        }
    }
    rows.slots.resize(tables.token_count);
    for (size_t i = 0; i < tables.token_count; i++) {
        const auto slot = static_cast<size_t>(group.slot_mapping_host[i]);
        rows.slots[i] = base + slot / about.block_tokens * about.block_stride +
                        slot % about.block_tokens * about.token_stride;
    }
    return rows;
}

void PagedCache::poll() {
    // Nothing is loaded or stored without other tiers; the call also takes back the blocks of finished steps.
    size_t count = 0;
    check(kavern_kv_poll(cache, 0, nullptr, &count), "poll");
}

void PagedCache::step_done(uint64_t step) {
    // Null: the model's work is over, not enqueued.
    check(kavern_kv_step_done(cache, step, nullptr), "step_done");
}

kavern_kv_statistics PagedCache::statistics() const {
    kavern_kv_statistics numbers{};
    numbers.struct_size = sizeof numbers;
    check(kavern_kv_stats(cache, &numbers), "statistics");
    return numbers;
}

KvFigures PagedCache::figures() const {
    const kavern_kv_statistics numbers = statistics();
    // Slots count a shared block for each of its sequences. Blocks that only a lease holds make the saving look less.
    const size_t alone = numbers.used_slots / about.block_tokens;
    const size_t saved = alone > numbers.used_blocks ? alone - numbers.used_blocks : 0;
    return {about.block_bytes, numbers.used_blocks, saved, about.block_count};
}

size_t PagedCache::longest() const { return about.block_count * about.block_tokens; }

void PagedCache::validate() const { check(kavern_kv_validate(cache), "validate"); }

}  // namespace engine
