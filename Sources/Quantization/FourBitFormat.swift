/// 4-bit formats as bitsandbytes writes them: codes with a scale for each block, the scales themselves in 8 bits.
///
/// Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E; after bitsandbytes 0.50 (functional.py, csrc/kernels.cu).

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

/// What NF4 and FP4 differ in; a block's codes and its scale come from one kernel.
public protocol FourBitFormat: SendableMetatype {
    /// bitsandbytes' `quant_type`.
    static var name: String { get }
    /// The value of each of the sixteen codes, in [-1, 1].
    static var table: [Float] { get }
    /// Codes and scales of `count` consecutive values.
    static func encode(
        _ values: UnsafePointer<Float>, count: Int, blockSize: Int, packed: UnsafeMutablePointer<UInt8>,
        scales: UnsafeMutablePointer<Float>, path: KernelPath)
}

extension FourBitFormat {
    /// Values that share a scale, unless another size is asked for.
    public static var defaultBlockSize: Int { 64 }
    /// What bitsandbytes writes; each is a power of two.
    public static var blockSizes: Set<Int> { [32, 64, 128, 256, 512, 1024, 2048, 4096] }

    /// Codes and scales of a flattened matrix.
    ///
    /// - Parameters:
    ///   - count: values that `read` gives
    ///   - nested: whether the scales are quantized too ("double quantization")
    ///   - read: writes the values of a range of the flattened matrix; called from several threads
    /// - Throws: `Failure` if a value is not finite; `name` says whose it is.
    public static func encode(
        name: String, count: Int, blockSize: Int = defaultBlockSize, nested: Bool = true, path: KernelPath = .active,
        read: (Range<Int>, UnsafeMutablePointer<Float>) -> Void
    ) throws(Failure) -> FourBitCodes {
        precondition(blockSizes.contains(blockSize), "block size \(blockSize)")
        let blocks = (count + blockSize - 1) / blockSize
        var packed = [UInt8](repeating: 0, count: (count + 1) / 2)
        var scales = [Float](repeating: 0, count: blocks)
        // A part holds whole blocks of every size, so that parts share no byte and no scale.
        let part = 1 << 18
        packed.withUnsafeMutableBufferPointer { packed in
            scales.withUnsafeMutableBufferPointer { scales in
                nonisolated(unsafe) let packed = packed
                nonisolated(unsafe) let scales = scales
                Parallel.forEach(count: (count + part - 1) / part) { index in
                    let range = Parallel.range(index, of: count, size: part)
                    let values = Scratch.first.floats(range.count)
                    read(range, values)
                    encode(
                        values, count: range.count, blockSize: blockSize, packed: packed.baseAddress! + range.lowerBound / 2,
                        scales: scales.baseAddress! + range.lowerBound / blockSize, path: path)
                }
            }
        }
        // The largest magnitude of a block is NaN if a value is.
        if let block = scales.firstIndex(where: { !$0.isFinite }) {
            throw Failure(
                .badData,
                "\(name) holds a value that is not finite among elements \(block * blockSize) to \(min(count, (block + 1) * blockSize) - 1); the checkpoint is damaged, fetch it again"
            )
        }
        return FourBitCodes(
            format: Self.name, table: table, blockSize: blockSize, packed: .owned(packed),
            scales: nested ? .nested(NestedScales(encoding: scales)) : .plain(scales))
    }

    /// Codes and scales of values in memory.
    public static func encode(
        _ values: [Float], blockSize: Int = defaultBlockSize, nested: Bool = true, path: KernelPath = .active
    ) throws(Failure) -> FourBitCodes {
        try values.withUnsafeBufferPointer { (source) throws(Failure) -> FourBitCodes in
            nonisolated(unsafe) let source = source
            return try encode(name: "the matrix", count: source.count, blockSize: blockSize, nested: nested, path: path) {
                range, target in
                target.update(from: source.baseAddress! + range.lowerBound, count: range.count)
            }
        }
    }

    /// Codes and scales of a stored tensor (F32, F16 or BF16); its mapped pages are given back as they are done.
    public static func encode(
        _ tensor: StoredTensor, blockSize: Int = defaultBlockSize, nested: Bool = true
    ) throws(Failure) -> FourBitCodes {
        let source = try StoredWeights(tensor)
        return try encode(name: "tensor \(tensor.name)", count: tensor.count, blockSize: blockSize, nested: nested) {
            source.read($0, into: $1)
        }
    }

    /// The format's row: blocks of 64 with nested scales.
    static func row(largestCodeError: Double) -> WeightFormat {
        WeightFormat(
            name: name, bitsPerWeight: 4 + 8.0 / 64 + 32.0 / (64 * Double(NestedScales.defaultBlockSize)),
            blockSize: defaultBlockSize,
            // A scale in 8 bits errs by half a step of the map's first decade, 0.9 / 64, times the largest distance from
            // the mean.
            errorBound: .init(ofBlock: largestCodeError, ofMatrix: 0.9 / 128),
            encode: { (tensor, _, _) throws(Failure) in try encode(tensor) },
            open: { (map, checkpoint) throws(Failure) in
                guard checkpoint.isBitsAndBytes4Bit(map.name),
                    checkpoint.hasTensor(map.name + ".weight.quant_state.bitsandbytes__" + name)
                else { return nil }
                return try FourBitCodes.load(map: map, from: checkpoint)
            })
    }
}
