/// Ticks stand at round numbers within the axis, whatever the values are.

import Reports
import Testing

@Suite struct AxisTests {
    @Test func ticksAreRoundNumbers() {
        #expect(Axis.linear([2.13, 4.02]).ticks.map(\.label) == ["2.0", "2.5", "3.0", "3.5", "4.0", "4.5"])
        #expect(Axis.linear([0.3, 8], includingZero: true).ticks.map(\.label) == ["0", "2", "4", "6", "8"])
        #expect(Axis.linear([-0.012, 0.009]).ticks.contains { $0.label == "0.000" })
        #expect(Axis.counts([1, 2, 3]).ticks.map(\.label) == ["1", "2", "3"])
        #expect(Axis.counts([0, 50]).ticks.map(\.label) == ["0", "10", "20", "30", "40", "50"])
    }

    @Test func bytesAreOnALogarithmicScale() throws {
        let axis = Axis.bytes([17.8e6, 178e6])
        #expect(axis.isLogarithmic && axis.ticks.map(\.label) == ["20 MB", "50 MB", "100 MB"])
        #expect(Axis.bytes([1e3, 1e8]).ticks.map(\.label) == ["1 kB", "10 kB", "100 kB", "1 MB", "10 MB", "100 MB"])
        let middle = try #require(Axis.bytes([1, 100]).position(10))
        #expect(abs(middle - 0.5) < 1e-12)
        #expect(axis.position(0) == nil && axis.position(-1) == nil)
    }

    @Test(
        arguments: [
            [], [0], [5], [-3], [1e300, -1e300], [1.7e308, -1.7e308], [.leastNonzeroMagnitude, .leastNormalMagnitude],
            [3, 3.0000000001], [.nan, .infinity, 2],
            [1e15, 1e15 + 2], [1e-9, 2e-9], [9_007_199_254_740_992],
        ] as [[Double]])
    func noValuesLeaveAnAxisWithoutOrder(_ values: [Double]) {
        for axis in [Axis.linear(values), Axis.counts(values), Axis.bytes(values), Axis.linear(values, includingZero: true)] {
            #expect(axis.low < axis.high && axis.low.isFinite && axis.high.isFinite, "\(values) \(axis)")
            #expect((0...24).contains(axis.ticks.count))
            #expect(axis.ticks.allSatisfy { $0.value >= axis.low && $0.value <= axis.high && !$0.label.isEmpty })
            #expect(zip(axis.ticks, axis.ticks.dropFirst()).allSatisfy { $0.value < $1.value }, "\(values) \(axis)")
            for value in values {
                if let place = axis.position(value) { #expect((0...1).contains(place)) }
            }
        }
    }
}
