/// Which examples, or bins of them, each step takes: fresh permutations, one after another.

import Primitives

/// Every example comes once before any comes again; a batch may reach from one permutation into the next.
public struct BatchOrder: Sendable {
    private let count: Int
    private var generator: SeededGenerator
    private var order: [Int] = []
    private var position = 0

    /// - Parameter generator: for the purpose "batches", by round, attempt and client
    public init(count: Int, generator: SeededGenerator) {
        precondition(count > 0, "there is no example to draw from")
        self.count = count
        self.generator = generator
    }

    /// Indices of the next `size` examples.
    public mutating func next(_ size: Int) -> [Int] {
        (0..<size).map { _ in
            if position == order.count {
                order = generator.permutation(count)
                position = 0
            }
            defer { position += 1 }
            return order[position]
        }
    }
}
