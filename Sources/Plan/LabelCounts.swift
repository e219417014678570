/// How a classifier's answers agree with the truth, label by label: enough for accuracy and macro-F1, and for their sums over
/// clients.

public struct LabelCounts: Codable, Equatable, Sendable {
    /// One entry a label: examples of it that were told right, that it was told for, and that have it.
    public private(set) var correct: [Int]
    public private(set) var predicted: [Int]
    public private(set) var actual: [Int]

    public init(labelCount: Int) {
        correct = [Int](repeating: 0, count: labelCount)
        predicted = correct
        actual = correct
    }

    /// Nil if the numbers are not of one set of examples: each is in `predicted` once and in `actual` once.
    public init?(correct: [Int], predicted: [Int], actual: [Int]) {
        guard correct.count == predicted.count, correct.count == actual.count else { return nil }
        var (told, had) = (0, 0)
        for label in correct.indices {
            guard correct[label] >= 0, correct[label] <= min(predicted[label], actual[label]),
                predicted[label] <= Self.largestCount, actual[label] <= Self.largestCount
            else { return nil }
            told += predicted[label]
            had += actual[label]
        }
        guard told == had else { return nil }
        self.correct = correct
        self.predicted = predicted
        self.actual = actual
    }

    /// So that sums over labels and clients stay in range.
    private static let largestCount = 1 << 40

    public var labelCount: Int { correct.count }
    public var examples: Int { actual.reduce(0, +) }

    public mutating func add(predicted told: Int, actual label: Int) {
        predicted[told] += 1
        actual[label] += 1
        if told == label { correct[label] += 1 }
    }

    /// The counts of both, over the same labels.
    public static func + (left: LabelCounts, right: LabelCounts) -> LabelCounts {
        precondition(left.labelCount == right.labelCount, "\(left.labelCount) labels and \(right.labelCount)")
        var sum = left
        for label in sum.correct.indices {
            sum.correct[label] += right.correct[label]
            sum.predicted[label] += right.predicted[label]
            sum.actual[label] += right.actual[label]
        }
        return sum
    }

    /// The share of examples that were told right; nil without one.
    public var accuracy: Double? { examples > 0 ? Double(correct.reduce(0, +)) / Double(examples) : nil }

    /// The mean over labels of F1 = 2 correct / (predicted + actual). Labels that no example has and none was told for are
    /// left out; nil if that are all.
    public var macroF1: Double? {
        var (sum, count) = (0.0, 0)
        for label in correct.indices where predicted[label] + actual[label] > 0 {
            sum += 2 * Double(correct[label]) / Double(predicted[label] + actual[label])
            count += 1
        }
        return count > 0 ? sum / Double(count) : nil
    }
}
