/// Bins of sequences: the published example, and what holds for any lengths.

import Datasets
import Primitives
import TestSupport
import Testing

@Suite struct BestFitPackingTests {
    @Test func `the worked example fills four bins`() {
        // Lengths 14, 7, 5, 2 and 3 in chunks of 8 at most.
        let lengths = [14, 7, 5, 2, 3].flatMap { length in
            stride(from: 0, to: length, by: 8).map { min(8, length - $0) }
        }
        #expect(lengths.sorted(by: >) == [8, 7, 6, 5, 3, 2])
        let packing = BestFitPacking(lengths: lengths, capacity: 8)
        #expect(packing.bins.map { $0.map { lengths[$0] } } == [[8], [7], [6, 2], [5, 3]])
        #expect(packing.tokens == 31 && packing.fillRate == 31.0 / 32)
    }

    @Test(arguments: [1, 2, 7, 8, 63, 64, 200])
    func `each sequence is in one bin, with the least room that suffices`(capacity: Int) {
        var generator = SeededGenerator(seed: 6, purpose: "lengths")
        let lengths = (0..<500).map { _ in 1 + generator.integer(below: capacity) }
        let packing = BestFitPacking(lengths: lengths, capacity: capacity)
        #expect(packing.bins.flatMap { $0 }.sorted() == Array(lengths.indices))
        #expect(packing.bins.allSatisfy { $0.reduce(0) { $0 + lengths[$1] } <= capacity })
        #expect(packing == BestFitPacking(lengths: lengths, capacity: capacity))
        // The same rule by looking at every bin.
        var rooms: [Int] = []
        for length in lengths.sorted(by: >) {
            if let best = rooms.indices.filter({ rooms[$0] >= length }).min(by: { rooms[$0] < rooms[$1] }) {
                rooms[best] -= length
            } else {
                rooms.append(capacity - length)
            }
        }
        let left = packing.bins.map { capacity - $0.reduce(0) { $0 + lengths[$1] } }
        #expect(left.sorted() == rooms.sorted())
    }

    @Test func `nothing needs no bin, and short sequences fill bins well`() {
        #expect(BestFitPacking(lengths: [], capacity: 5).bins.isEmpty)
        var generator = SeededGenerator(seed: 1, purpose: "lengths")
        let lengths = (0..<20_000).map { _ in 1 + generator.integer(below: 300) }
        #expect(BestFitPacking(lengths: lengths, capacity: 512).fillRate > 0.99)
    }
}
