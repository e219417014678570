/// The one comparison of numbers that tests use; `ClosenessTests` plants errors to prove that it sees them.

import Primitives

/// How far `actual` is from `reference`.
public struct Closeness: Sendable, CustomStringConvertible {
    /// Largest |actual - reference|.
    public let largestDifference: Double
    /// Largest |reference|.
    public let largestReference: Double
    /// Frobenius norm of the difference over that of the reference; 0 when both are zero.
    public let relativeNorm: Double
    /// False if the counts differ or a value is not finite.
    public let comparable: Bool

    public init(_ actual: some Collection<Float>, _ reference: some Collection<Float>) {
        self.init(actual.map(Double.init), reference.map(Double.init))
    }

    public init(_ actual: [Double], _ reference: [Double]) {
        comparable = actual.count == reference.count && actual.allSatisfy(\.isFinite) && reference.allSatisfy(\.isFinite)
        var difference = 0.0
        var size = 0.0
        var squaredDifference = 0.0
        var squaredReference = 0.0
        for (a, r) in zip(actual, reference) {
            difference = max(difference, abs(a - r))
            size = max(size, abs(r))
            squaredDifference += (a - r) * (a - r)
            squaredReference += r * r
        }
        largestDifference = difference
        largestReference = size
        relativeNorm =
            squaredReference > 0
            ? (squaredDifference / squaredReference).squareRoot() : (squaredDifference > 0 ? .infinity : 0)
    }

    /// Every difference is at most `tolerance` times the largest reference value.
    public func isWithin(ofLargest tolerance: Double) -> Bool {
        comparable && largestDifference <= tolerance * largestReference
    }

    /// The norm of the difference is at most `tolerance` times the norm of the reference.
    public func isWithin(norm tolerance: Double) -> Bool { comparable && relativeNorm <= tolerance }

    public var description: String {
        "largest difference \(largestDifference) of \(largestReference), relative norm \(relativeNorm), comparable \(comparable)"
    }
}
