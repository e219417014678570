/// A hash table from a pair of token ids to the merge that joins them.

struct PairTable: Sendable {
    struct Merge: Sendable {
        /// Lower ranks are merged first.
        let rank: UInt32
        let token: Int32
    }

    private static let empty = UInt64.max
    private var keys: [UInt64]
    private var merges: [Merge]
    private let mask: Int

    /// - Parameter capacity: the most pairs that will be inserted.
    init(capacity: Int) {
        var size = 16
        while size < 2 * capacity { size *= 2 }
        keys = Array(repeating: Self.empty, count: size)
        merges = Array(repeating: Merge(rank: 0, token: 0), count: size)
        mask = size - 1
    }

    /// Replaces the merge of an equal pair. Ids are not negative.
    mutating func insert(_ left: Int32, _ right: Int32, _ merge: Merge) {
        let key = Self.key(left, right)
        let slot = slot(of: key)
        keys[slot] = key
        merges[slot] = merge
    }

    func merge(_ left: Int32, _ right: Int32) -> Merge? {
        let key = Self.key(left, right)
        let slot = slot(of: key)
        return keys[slot] == key ? merges[slot] : nil
    }

    private static func key(_ left: Int32, _ right: Int32) -> UInt64 {
        UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    }

    private func slot(of key: UInt64) -> Int {
        var mixed = (key ^ (key >> 31)) &* 0xBF58_476D_1CE4_E5B9
        mixed ^= mixed >> 29
        var slot = Int(truncatingIfNeeded: mixed) & mask
        while keys[slot] != key, keys[slot] != Self.empty { slot = (slot + 1) & mask }
        return slot
    }
}
