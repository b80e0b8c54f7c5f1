// A contiguous cache behind the five calls; contiguous.h says why. A sequence's id is its piece plus one.
#include "contiguous.h"

#include "failure.h"

namespace engine {

ContiguousCache::ContiguousCache(const KvShape &shape, size_t sequences, size_t longest)
    : shape(shape), most(longest), pieces(sequences) {
    const size_t head = shape.channels * kv_bytes(shape.type), token = shape.heads * head;
    rows.type = shape.type;
    rows.strides = {2 * most * token, most * token, token, head};
    rows.block_tokens = most;
    for (Piece &piece : pieces) piece.memory.resize(most * shape.token_bytes());
}

void ContiguousCache::match(std::vector<Lookup> &lookups) {
    for (Lookup &lookup : lookups) lookup.lease = lookup.hit_tokens = 0;
}

void ContiguousCache::step(uint64_t step, std::vector<Op> &ops) {
    latest = step;
    rows.sequences.clear();
    rows.slots.clear();
    for (Op &op : ops) {
        if (op.kind == OpKind::release) {
            op.was_done = true;
            continue;
        }
        size_t index = op.target - 1;
        if (op.kind == OpKind::admit) {
            for (index = 0; index < pieces.size() && pieces[index].is_taken;) index++;
            if (index == pieces.size()) continue;
            pieces[index].is_taken = true;
            pieces[index].length = 0;
        }
        Piece &piece = pieces.at(index);
        op.was_done = true;
        op.sequence = index + 1;
        if (op.kind == OpKind::free) {
            piece.is_taken = false;
            continue;
        }
        if (op.count > most - piece.length) throw Failure(1, "a sequence outgrew its piece of the contiguous cache");
        for (size_t i = 0; i < op.count; i++) {
            rows.slots.push_back(piece.memory.data() + (piece.length + i) * rows.strides.token);
        }
        piece.length += op.count;
        rows.sequences.push_back({{piece.memory.data()}, piece.length, rows.slots.size() - op.count, op.count});
    }
}

const StepRows &ContiguousCache::tables(uint64_t) { return rows; }

KvFigures ContiguousCache::figures() const {
    KvFigures figures{most * shape.token_bytes(), 0, 0, pieces.size()};
    for (const Piece &piece : pieces) figures.used_blocks += piece.is_taken;
    return figures;
}

}  // namespace engine
