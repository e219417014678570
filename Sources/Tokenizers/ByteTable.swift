/// A hash table from byte strings to numbers: a vocabulary, or the words already tokenized.
///
/// Keys are bytes and not `String`, because Swift's strings are equal up to canonical equivalence and tokens are not.

struct ByteTable: Sendable {
    /// Every key, one after another.
    private var arena: [UInt8] = []
    /// Key k is arena[starts[k]..<starts[k + 1]].
    private var starts: [Int] = [0]
    private var values: [Int32] = []
    /// Open addressing with linear probing: an index into `values`, or -1.
    private var slots: [Int32]
    private var mask: Int

    /// - Parameter capacity: how many keys fit without growing.
    init(capacity: Int = 8) {
        var size = 16
        while size < 2 * capacity { size *= 2 }
        slots = Array(repeating: -1, count: size)
        mask = size - 1
        values.reserveCapacity(capacity)
        starts.reserveCapacity(capacity + 1)
    }

    var count: Int { values.count }

    func key(_ index: Int) -> ArraySlice<UInt8> { arena[starts[index]..<starts[index + 1]] }

    /// The value of the key, or nil.
    func value(of key: UnsafeBufferPointer<UInt8>) -> Int32? {
        let slot = slot(of: key)
        return slots[slot] < 0 ? nil : values[Int(slots[slot])]
    }

    func value(of key: ArraySlice<UInt8>) -> Int32? { key.withUnsafeBufferPointer { value(of: $0) } }

    /// False, with nothing changed, if the key is already there.
    @discardableResult
    mutating func insert(_ key: UnsafeBufferPointer<UInt8>, _ value: Int32) -> Bool {
        if 2 * (values.count + 1) > slots.count { grow() }
        let slot = slot(of: key)
        guard slots[slot] < 0 else { return false }
        slots[slot] = Int32(values.count)
        values.append(value)
        arena.append(contentsOf: key)
        starts.append(arena.count)
        return true
    }

    private func slot(of key: UnsafeBufferPointer<UInt8>) -> Int {
        arena.withUnsafeBufferPointer { arena in
            var slot = Int(truncatingIfNeeded: Self.hash(key)) & mask
            while slots[slot] >= 0 {
                let index = Int(slots[slot])
                let start = starts[index]
                if starts[index + 1] - start == key.count {
                    var offset = 0
                    while offset < key.count, arena[start + offset] == key[offset] { offset += 1 }
                    if offset == key.count { return slot }
                }
                slot = (slot + 1) & mask
            }
            return slot
        }
    }

    private mutating func grow() {
        slots = Array(repeating: -1, count: 2 * slots.count)
        mask = slots.count - 1
        for index in 0..<values.count {
            var slot = key(index).withUnsafeBufferPointer { Int(truncatingIfNeeded: Self.hash($0)) } & mask
            while slots[slot] >= 0 { slot = (slot + 1) & mask }
            slots[slot] = Int32(index)
        }
    }

    /// Eight bytes a step, mixed by a multiplication and a shift (the constants of SplitMix64's finalizer,
    /// Steele, Lea and Flood 2014). Never stored, so that it may change.
    private static func hash(_ key: UnsafeBufferPointer<UInt8>) -> UInt64 {
        let raw = UnsafeRawBufferPointer(key)
        var hash = UInt64(key.count) &* 0x9E37_79B9_7F4A_7C15
        var offset = 0
        while offset + 8 <= raw.count {
            hash = mix(hash ^ raw.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
            offset += 8
        }
        var last: UInt64 = 0
        while offset < raw.count {
            last = last << 8 | UInt64(raw[offset])
            offset += 1
        }
        return mix(hash ^ last)
    }

    private static func mix(_ value: UInt64) -> UInt64 {
        var value = value
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
}
