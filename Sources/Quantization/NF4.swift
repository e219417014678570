/// The NF4 format as bitsandbytes writes it: 4-bit codes with a scale per block, the scales themselves in 8 bits.
///
/// Dettmers et al. 2023, arXiv:2305.14314, sections 3 and appendix E; bit for bit after bitsandbytes 0.50
/// (functional.py, csrc/kernels.cu).

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

public enum NF4 {
    /// The sixteen values of a code: quantiles of the normal distribution, scaled to [-1, 1] (bitsandbytes' constants).
    public static let table: [Float] = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
    /// Values that share a scale, unless another size is asked for.
    public static let defaultBlockSize = 64
    /// What bitsandbytes writes; each is a power of two.
    public static let blockSizes: Set<Int> = [32, 64, 128, 256, 512, 1024, 2048, 4096]

    /// Codes and scales of a flattened matrix. A tie between two values takes the lower code.
    ///
    /// - Parameters:
    ///   - count: values that `read` gives
    ///   - nested: whether the scales are quantized too ("double quantization")
    ///   - read: writes the values of a range of the flattened matrix; called from several threads
    /// - Throws: `Failure` if a value is not finite; `name` says whose it is.
    public static func encode(
        name: String, count: Int, blockSize: Int = defaultBlockSize, nested: Bool = true,
        read: (Range<Int>, UnsafeMutablePointer<Float>) -> Void
    ) throws(Failure) -> FourBitCodes {
        precondition(blockSizes.contains(blockSize), "block size \(blockSize)")
        let blocks = (count + blockSize - 1) / blockSize
        var packed = [UInt8](repeating: 0, count: (count + 1) / 2)
        var scales = [Float](repeating: 0, count: blocks)
        // A part holds whole blocks of every size, so that parts share no byte and no scale.
        let part = 1 << 18
        let path = KernelPath.active.rawValue
        packed.withUnsafeMutableBufferPointer { packed in
            scales.withUnsafeMutableBufferPointer { scales in
                nonisolated(unsafe) let packed = packed
                nonisolated(unsafe) let scales = scales
                Parallel.forEach(count: (count + part - 1) / part) { index in
                    let range = Parallel.range(index, of: count, size: part)
                    let values = Scratch.first.floats(range.count)
                    read(range, values)
                    tributary_encode_nf4(
                        path, values, range.count, blockSize, packed.baseAddress! + range.lowerBound / 2,
                        scales.baseAddress! + range.lowerBound / blockSize)
                }
            }
        }
        // The largest magnitude of a block shows an infinity, but a NaN only if no value is larger: the sum shows both.
        if let block = scales.firstIndex(where: { !$0.isFinite }) {
            throw Failure(
                .badData,
                "\(name) holds a value that is not finite among elements \(block * blockSize) to \(min(count, (block + 1) * blockSize) - 1); the checkpoint is damaged, fetch it again"
            )
        }
        return FourBitCodes(
            table: table, blockSize: blockSize, packed: .owned(packed),
            scales: nested ? .nested(NestedScales(encoding: scales)) : .plain(scales))
    }

    /// Codes and scales of values in memory.
    public static func encode(
        _ values: [Float], blockSize: Int = defaultBlockSize, nested: Bool = true
    ) throws(Failure) -> FourBitCodes {
        try values.withUnsafeBufferPointer { (source) throws(Failure) -> FourBitCodes in
            nonisolated(unsafe) let source = source
            return try encode(name: "the matrix", count: source.count, blockSize: blockSize, nested: nested) { range, target in
                target.update(from: source.baseAddress! + range.lowerBound, count: range.count)
            }
        }
    }

    /// Codes and scales of a stored tensor (F32, F16 or BF16); its mapped pages are given back as they are done.
    public static func encode(
        _ tensor: StoredTensor, blockSize: Int = defaultBlockSize, nested: Bool = true
    ) throws(Failure) -> FourBitCodes {
        let source = try DenseSource(tensor)
        return try encode(name: "tensor \(tensor.name)", count: tensor.count, blockSize: blockSize, nested: nested) {
            range, target in
            source.decode(range, into: target)
            let bytes = tensor.range.lowerBound + range.lowerBound * tensor.dtype.size
            tensor.file.release(bytes..<bytes + range.count * tensor.dtype.size)
        }
    }
}

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
