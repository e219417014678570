/// Sequences put into bins of equal size, so that every step reads about as many tokens: best-fit decreasing
/// (Ding et al. 2024, arXiv:2404.10830, section 2).

/// Bins of sequences whose lengths sum to the capacity at most.
public struct BestFitPacking: Sendable, Equatable {
    /// Indices of sequences, bin by bin, the longest of each first; in the order in which bins were begun.
    public let bins: [[Int]]
    public let capacity: Int
    /// Of all sequences.
    public let tokens: Int

    /// The share of the bins' room that holds tokens.
    public var fillRate: Double { bins.isEmpty ? 0 : Double(tokens) / Double(bins.count * capacity) }

    /// Longest first, equal ones in their order, each into the bin with the least room that suffices, the latest of equals.
    /// N sequences take O(N log capacity).
    ///
    /// - Parameters:
    ///   - lengths: each from 1 to `capacity`
    ///   - capacity: tokens of a bin
    public init(lengths: [Int], capacity: Int) {
        precondition(capacity > 0 && lengths.allSatisfy { (1...capacity).contains($0) }, "a sequence does not fit a bin")
        self.capacity = capacity
        tokens = lengths.reduce(0, +)
        var bins: [[Int]] = []
        /// Bins by the room that they have left.
        var withRoom = [[Int]](repeating: [], count: capacity + 1)
        var rooms = Rooms(largest: capacity)
        for index in Self.longestFirst(lengths, capacity) {
            let length = lengths[index]
            let bin: Int
            let room: Int
            if let found = rooms.smallest(from: length) {
                bin = withRoom[found].removeLast()
                room = found
                if withRoom[found].isEmpty { rooms.set(found, false) }
            } else {
                bin = bins.count
                room = capacity
                bins.append([])
            }
            bins[bin].append(index)
            if room > length {
                withRoom[room - length].append(bin)
                rooms.set(room - length, true)
            }
        }
        self.bins = bins
    }

    /// Indices by falling length, equal ones in their order: a counting sort.
    private static func longestFirst(_ lengths: [Int], _ capacity: Int) -> [Int] {
        var starts = [Int](repeating: 0, count: capacity + 2)
        for length in lengths { starts[capacity - length + 1] += 1 }
        for place in 1..<starts.count { starts[place] += starts[place - 1] }
        var order = [Int](repeating: 0, count: lengths.count)
        for (index, length) in lengths.enumerated() {
            order[starts[capacity - length]] = index
            starts[capacity - length] += 1
        }
        return order
    }
}

/// Which amounts of room some bin has: a segment tree, whose node says whether any amount below it is there.
private struct Rooms {
    private var nodes: [Bool]
    private let leaves: Int

    init(largest: Int) {
        var leaves = 1
        while leaves <= largest { leaves *= 2 }
        self.leaves = leaves
        nodes = [Bool](repeating: false, count: 2 * leaves)
    }

    mutating func set(_ room: Int, _ isThere: Bool) {
        var node = leaves + room
        nodes[node] = isThere
        while node > 1 {
            node /= 2
            nodes[node] = nodes[2 * node] || nodes[2 * node + 1]
        }
    }

    /// The smallest room of at least `least`; nil if there is none.
    func smallest(from least: Int) -> Int? {
        var node = leaves + least
        if !nodes[node] {
            // Up to the first node whose right neighbour holds one, then down to its leftmost.
            while node > 1, node & 1 == 1 || !nodes[node + 1] { node /= 2 }
            guard node > 1 else { return nil }
            node += 1
            while node < leaves { node = nodes[2 * node] ? 2 * node : 2 * node + 1 }
        }
        return node - leaves
    }
}
