/// One axis of a chart: where values go, and which of them are written beside it.

import Glibc

/// A scale from values to 0...1, with ticks at round numbers.
public struct Axis: Sendable, Equatable {
    public struct Tick: Sendable, Equatable {
        public let value: Double
        public let label: String
    }

    public let low: Double
    public let high: Double
    public let isLogarithmic: Bool
    /// Ascending, all in low...high.
    public let ticks: [Tick]

    /// Charts go no further, so that differences of the largest numbers stay finite.
    private static let bound = 1e300

    /// Whole numbers from 0 or the smallest on, such as rounds.
    public static func counts(_ values: [Double]) -> Axis {
        linear(values, step: 1) { NumberText.plain($0) }
    }

    /// Any numbers; `includingZero` for those that begin at nothing.
    public static func linear(_ values: [Double], includingZero: Bool = false) -> Axis {
        linear(includingZero ? values + [0] : values, step: 0, label: nil)
    }

    private static func linear(_ values: [Double], step least: Double, label: ((Double) -> String)?) -> Axis {
        let values = values.filter(\.isFinite).map { min(max($0, -bound), bound) }
        var low = values.min() ?? 0
        var high = values.max() ?? 1
        if high - low <= abs(high) * 1e-12 {
            let margin = max(abs(high) * 0.05, least > 0 ? 1 : 1e-6)
            // Counts of nothing do not begin below nothing.
            (low, high) = (least > 0 ? max(low - margin, min(low, 0)) : low - margin, high + margin)
        }
        let step = max(roundStep((high - low) / 5), least)
        if least == 0 { (low, high) = ((low / step).rounded(.down) * step, (high / step).rounded(.up) * step) }
        let first = (low / step - 1e-9).rounded(.up)
        let count = Int(min(((high / step + 1e-9).rounded(.down) - first), 20))
        let ticks = (0...max(count, 0)).map { index in
            let value = (first + Double(index)) * step
            return Tick(value: value, label: label?(value) ?? Self.label(value, step: step))
        }
        return Axis(low: low, high: high, isLogarithmic: false, ticks: ticks.filter { $0.value >= low && $0.value <= high })
    }

    /// Positive counts of bytes on a logarithmic scale; others are left out.
    public static func bytes(_ values: [Double]) -> Axis {
        let values = values.filter { $0 > 0 && $0.isFinite }.map { min($0, bound) }
        var low = values.min() ?? 1
        var high = values.max() ?? 10
        if high / low < 1.2 { (low, high) = (low / 1.1, high * 1.1) }
        let decades = log10(high / low)
        // Each decade's 1, 2 and 5 over a short range, each decade or every few of them over a long one.
        let mantissas: [Double] = decades < 2.5 ? [1, 2, 5] : [1]
        let stride = max(1, Int((decades / 6).rounded(.up)))
        let (first, last) = (Int(floor(log10(low))), Int(floor(log10(high))))
        var found: [Double] = []
        for exponent in first...max(first, last) where exponent.isMultiple(of: stride) {
            for mantissa in mantissas {
                let value = mantissa * pow(10, Double(exponent))
                if value >= low * (1 - 1e-12), value <= high * (1 + 1e-12) { found.append(min(max(value, low), high)) }
            }
        }
        if found.count < 2 { found = linear([low, high]).ticks.map(\.value).filter { $0 >= low && $0 <= high } }
        return Axis(
            low: low, high: high, isLogarithmic: true,
            ticks: found.map { value in
                let text = NumberText.bytes(value)
                // Ticks are round: 20 MB, not 20.0 MB.
                let parts = text.split(separator: " ")
                guard parts.count == 2, let number = Double(parts[0]) else { return Tick(value: value, label: text) }
                return Tick(value: value, label: "\(NumberText.plain(number)) \(parts[1])")
            })
    }

    /// The smallest of 1, 2, 5 times a power of ten that is no smaller.
    static func roundStep(_ raw: Double) -> Double {
        guard raw.isFinite, raw > 0 else { return 1 }
        let power = pow(10, floor(log10(raw)))
        guard power > 0 else { return raw }
        let mantissa = raw / power
        return (mantissa <= 1.0001 ? 1 : mantissa <= 2.0001 ? 2 : mantissa <= 5.0001 ? 5 : 10) * power
    }

    private static func label(_ value: Double, step: Double) -> String {
        let value = value == 0 ? 0 : value
        guard abs(value) < 1e6, step >= 1e-6 else { return NumberText.plain(value) }
        return NumberText.decimal(value, max(0, Int((-log10(step)).rounded(.up))))
    }

    /// Where the value lies, 0 at the low end and 1 at the high end, kept within; nil for what a logarithm cannot take.
    public func position(_ value: Double) -> Double? {
        guard value.isFinite, !isLogarithmic || value > 0 else { return nil }
        let share = isLogarithmic ? log(value / low) / log(high / low) : (value - low) / (high - low)
        return min(max(share, 0), 1)
    }
}
