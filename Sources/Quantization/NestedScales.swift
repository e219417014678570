/// The scales of 4-bit blocks in 8 bits.

import CKernels

/// Scales in 8 bits: map[code] x (scale of 256 codes) + offset (QLoRA's double quantization).
public struct NestedScales: Sendable {
    public let codes: [UInt8]
    /// 256 values, rising.
    public let map: [Float]
    /// One for each `blockSize` codes.
    public let scales: [Float]
    public let offset: Float
    public let blockSize: Int

    public static let defaultBlockSize = 256

    public init(codes: [UInt8], map: [Float], scales: [Float], offset: Float, blockSize: Int) {
        precondition(map.count == 256 && scales.count == (codes.count + blockSize - 1) / blockSize)
        self.codes = codes
        self.map = map
        self.scales = scales
        self.offset = offset
        self.blockSize = blockSize
    }

    /// The nearest code of the signed dynamic map for each scale less their mean; a tie takes the lower code.
    ///
    /// - Parameter offset: in place of the mean
    public init(encoding values: [Float], offset: Float? = nil) {
        let map = DynamicMap.signed
        let size = Self.defaultBlockSize
        let mean = offset ?? Self.mean(values)
        var codes = [UInt8](repeating: 0, count: values.count)
        var scales: [Float] = []
        for start in stride(from: 0, to: values.count, by: size) {
            let block = start..<min(values.count, start + size)
            scales.append(block.reduce(Float(0)) { max($0, abs(values[$1] - mean)) })
            let largest = block.reduce(0.0) { max($0, abs(Double(values[$1]) - Double(mean))) }
            for index in block {
                let unit = largest > 0 ? (Double(values[index]) - Double(mean)) / largest : 0
                codes[index] = map.nearest(unit)
            }
        }
        self.init(codes: codes, map: map.values, scales: scales, offset: mean, blockSize: size)
    }

    /// The mean in single precision with torch's order of additions, so that the offset has bitsandbytes' bits (ATen's
    /// SumKernel.cpp, `cascade_sum`: eight lanes, four rows at a time, sums of 16 or more rows joined in four levels).
    private static func mean(_ values: [Float]) -> Float {
        let (lanes, rows, levels) = (8, 4, 4)
        let vectors = values.count / lanes
        let steps = vectors / rows
        var logarithm = 0
        while 1 << logarithm < steps { logarithm += 1 }
        let power = max(4, logarithm / levels)
        var sums = [[Float]](repeating: [Float](repeating: 0, count: rows * lanes), count: levels)
        for step in 0..<steps {
            for lane in 0..<rows * lanes { sums[0][lane] += values[step * rows * lanes + lane] }
            let done = step + 1
            guard done & ((1 << power) - 1) == 0 else { continue }
            for level in 1..<levels {
                for lane in 0..<rows * lanes {
                    sums[level][lane] += sums[level - 1][lane]
                    sums[level - 1][lane] = 0
                }
                if done & (((1 << power) - 1) << (level * power)) != 0 { break }
            }
        }
        for level in 1..<levels { for lane in 0..<rows * lanes { sums[0][lane] += sums[level][lane] } }
        for vector in steps * rows..<vectors { for lane in 0..<lanes { sums[0][lane] += values[vector * lanes + lane] } }
        for row in 1..<rows { for lane in 0..<lanes { sums[0][lane] += sums[0][row * lanes + lane] } }
        var total: Float = 0
        for value in values[(vectors * lanes)...] { total += value }
        for lane in 0..<lanes { total += sums[0][lane] }
        return total / Float(max(1, values.count))
    }

    /// The scales that the codes stand for.
    public func decoded() -> [Float] {
        [Float](unsafeUninitializedCapacity: codes.count) { target, initialized in
            if !codes.isEmpty { decode(0..<codes.count, into: target.baseAddress!) }
            initialized = codes.count
        }
    }

    func decode(_ range: Range<Int>, into target: UnsafeMutablePointer<Float>) {
        precondition(range.upperBound <= codes.count)
        tributary_decode_nested_scales(codes, map, scales, blockSize, offset, range.lowerBound, range.count, target)
    }
}
