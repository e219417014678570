/// Weights as numbers: F32, F16 or BF16 where a checkpoint stores them, mapped, and floats in memory.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

extension WeightFormat {
    public static let f32 = WeightFormat(
        name: "f32", bitsPerWeight: 32, blockSize: 1,
        open: { (map, checkpoint) throws(Failure) in try dense(map, checkpoint, .f32) })
    public static let f16 = WeightFormat(
        name: "f16", bitsPerWeight: 16, blockSize: 1,
        open: { (map, checkpoint) throws(Failure) in try dense(map, checkpoint, .f16) })
    public static let bf16 = WeightFormat(
        name: "bf16", bitsPerWeight: 16, blockSize: 1,
        open: { (map, checkpoint) throws(Failure) in try dense(map, checkpoint, .bf16) })

    private static func dense(
        _ map: LinearMap, _ checkpoint: CheckpointFolder, _ type: TensorType
    ) throws(Failure) -> (any PackedWeights)? {
        let tensor = try checkpoint.tensor(map.name + ".weight")
        guard tensor.dtype == type, !checkpoint.isQuantized(map.name) else { return nil }
        return try StoredWeights(tensor, rows: map.outputs, columns: map.inputs)
    }
}

/// A stored matrix, read where its file is mapped, without a copy.
struct StoredWeights: PackedWeights {
    let tensor: StoredTensor
    var count: Int { tensor.count }

    /// - Throws: `Failure` if the tensor has another type.
    init(_ tensor: StoredTensor) throws(Failure) {
        guard [.f32, .f16, .bf16].contains(tensor.dtype) else {
            throw Failure(
                .badData,
                "\(tensor.file.path): tensor \(tensor.name) is stored as \(tensor.dtype.rawValue); F32, F16 and BF16 weights are supported"
            )
        }
        self.tensor = tensor
    }

    /// - Throws: `Failure` if the tensor has another type or shape.
    init(_ tensor: StoredTensor, rows: Int, columns: Int) throws(Failure) {
        try self.init(tensor)
        guard tensor.shape == [rows, columns], rows > 0, columns > 0 else {
            throw Failure(
                .badData, "\(tensor.file.path): tensor \(tensor.name) has shape \(tensor.shape), but \([rows, columns]) is needed"
            )
        }
    }

    var formatName: String { tensor.dtype.rawValue.lowercased() }
    var byteCount: Int { tensor.range.count }
    func release() { tensor.release() }

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath = .active
    ) {
        guard let start = tensor.bytes.baseAddress else { return }
        for run in tensor.runs(rows) {
            // Rows at equal distances are those of a matrix with longer rows.
            let bytes = start + run.stored * columns * tensor.dtype.size
            let target = target + (run.rows.lowerBound - rows.lowerBound) * stride
            let (columns, count) = (columns * run.step, run.rows.count)
            switch tensor.dtype {
            case .bf16:
                tributary_decode_bf16(
                    path.rawValue, bytes, columns, 0, count, part.lowerBound, part.upperBound, target, stride)
            case .f16:
                tributary_decode_f16(path.rawValue, bytes, columns, 0, count, part.lowerBound, part.upperBound, target, stride)
            default: tributary_decode_f32(bytes, columns, 0, count, part.lowerBound, part.upperBound, target, stride)
            }
        }
    }

    /// The stored floats themselves, if they can be read in place.
    var floats: UnsafePointer<Float>? {
        tensor.isPlainFloats ? tensor.bytes.baseAddress?.assumingMemoryBound(to: Float.self) : nil
    }

    func pack(
        columns: Int, n: Range<Int>, over k: Range<Int>, transposed: Bool, into target: UnsafeMutablePointer<UInt32>,
        path: KernelPath
    ) -> Bool {
        switch tensor.dtype {
        case .bf16 where tensor.interleavedHeadSize == nil:
            var matrix = tributary_halves_matrix(values: tensor.bytes.baseAddress, stride: columns)
            tributary_bf16_pack_bf16(
                path.rawValue, &matrix, transposed ? 1 : 0, n.lowerBound, n.upperBound, k.lowerBound, k.upperBound, target)
            return true
        default:
            guard let floats else { return false }
            packFloats(floats, stride: columns, transposed: transposed, columns: n, over: k, into: target, path: path)
            return true
        }
    }

    func multiply(
        _ x: FewTokens, rows: Range<Int>, into y: UnsafeMutablePointer<Float>, lead: Int, path: KernelPath
    ) -> Bool {
        let product =
            switch tensor.dtype {
            case .bf16: tributary_gemv_bf16
            case .f16: tributary_gemv_f16
            default: tributary_gemv_f32
            }
        for run in tensor.runs(rows) {
            let start = tensor.bytes.baseAddress! + run.stored * x.columns * tensor.dtype.size
            product(
                path.rawValue, start, run.step * x.columns, run.rows.count, x.columns, x.values, x.columns, x.count,
                y + (run.rows.lowerBound - rows.lowerBound), lead)
        }
        return true
    }

    /// The values of a range of the flattened matrix; its mapped pages are given back.
    func read(_ range: Range<Int>, into target: UnsafeMutablePointer<Float>) {
        guard tensor.interleavedHeadSize != nil else {
            decode(columns: count, rows: 0..<1, range, into: target, stride: range.count)
            tensor.release(range)
            return
        }
        let columns = tensor.shape[1]
        var element = range.lowerBound
        while element < range.upperBound {
            let row = element / columns
            let part = element - row * columns..<min(columns, range.upperBound - row * columns)
            decode(
                columns: columns, rows: row..<row + 1, part, into: target + element - range.lowerBound, stride: part.count)
            element += part.count
        }
    }
}

/// A matrix of floats in memory.
final class FloatWeights: PackedWeights {
    // Written in `init` only.
    nonisolated(unsafe) private let values: FloatBuffer
    private let count: Int

    init(count: Int, _ fill: (UnsafeMutablePointer<Float>) -> Void) {
        self.count = count
        values = FloatBuffer(capacity: count)
        fill(values.pointer)
    }

    var formatName: String { "f32" }
    var byteCount: Int { 4 * count }
    var floats: UnsafePointer<Float>? { UnsafePointer(values.pointer) }

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath
    ) {
        tributary_decode_f32(
            values.pointer, columns, rows.lowerBound, rows.upperBound, part.lowerBound, part.upperBound, target, stride)
    }

    func pack(
        columns: Int, n: Range<Int>, over k: Range<Int>, transposed: Bool, into target: UnsafeMutablePointer<UInt32>,
        path: KernelPath
    ) -> Bool {
        packFloats(values.pointer, stride: columns, transposed: transposed, columns: n, over: k, into: target, path: path)
        return true
    }
}

/// A matrix of bfloat16 in memory; rows of an even number of values.
final class HalfWeights: PackedWeights {
    // Written in `init` only.
    nonisolated(unsafe) private let values: FloatBuffer
    private let rows: Int
    private let stride: Int

    /// - Parameter fill: writes every row, `stride` values from row to row
    init(rows: Int, columns: Int, _ fill: (UnsafeMutablePointer<UInt16>, _ stride: Int) -> Void) {
        self.rows = rows
        stride = (columns + 1) / 2 * 2
        values = FloatBuffer(capacity: rows * stride / 2)
        fill(UnsafeMutableRawPointer(values.pointer).assumingMemoryBound(to: UInt16.self), stride)
    }

    var formatName: String { "bf16" }
    var byteCount: Int { 2 * rows * stride }

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride lead: Int,
        path: KernelPath
    ) {
        tributary_decode_bf16(
            path.rawValue, values.pointer, stride, rows.lowerBound, rows.upperBound, part.lowerBound, part.upperBound, target,
            lead)
    }

    func pack(
        columns: Int, n: Range<Int>, over k: Range<Int>, transposed: Bool, into target: UnsafeMutablePointer<UInt32>,
        path: KernelPath
    ) -> Bool {
        var matrix = tributary_halves_matrix(values: values.pointer, stride: stride)
        tributary_bf16_pack_bf16(
            path.rawValue, &matrix, transposed ? 1 : 0, n.lowerBound, n.upperBound, k.lowerBound, k.upperBound, target)
        return true
    }

    func multiply(
        _ x: FewTokens, rows: Range<Int>, into y: UnsafeMutablePointer<Float>, lead: Int, path: KernelPath
    ) -> Bool {
        let start = UnsafeMutableRawPointer(values.pointer) + 2 * rows.lowerBound * stride
        tributary_gemv_bf16(path.rawValue, start, stride, rows.count, x.columns, x.values, x.columns, x.count, y, lead)
        return true
    }
}

extension QuantizedMatrix {
    /// Bytes of what `adding` returns for a matrix of this size.
    public static func sumByteCount(rows: Int, columns: Int, as type: ComputeType) -> Int {
        type == .bfloat16 ? 2 * rows * ((columns + 1) / 2 * 2) : 4 * rows * columns
    }

    /// This matrix and a dense one, added in float32, over all threads.
    ///
    /// - Parameters:
    ///   - type: what the sum is held as. bfloat16 gives products in bfloat16 the same bits as float32 does.
    ///   - add: adds to some rows, `columns` floats from row to row
    public func adding(
        as type: ComputeType, _ add: (_ rows: Range<Int>, UnsafeMutablePointer<Float>) -> Void
    ) -> QuantizedMatrix {
        let part = 64
        func forParts(_ body: (Range<Int>) -> Void) {
            Parallel.forEach(count: (rows + part - 1) / part) { body(Parallel.range($0, of: rows, size: part)) }
        }
        func sum(_ range: Range<Int>, _ target: UnsafeMutablePointer<Float>) {
            decode(rows: range, columns: 0..<columns, into: target, stride: columns)
            add(range, target)
        }
        let weights: any PackedWeights =
            switch type {
            case .float32:
                FloatWeights(count: rows * columns) { values in
                    nonisolated(unsafe) let values = values
                    forParts { sum($0, values + $0.lowerBound * columns) }
                }
            case .bfloat16:
                HalfWeights(rows: rows, columns: columns) { halves, stride in
                    nonisolated(unsafe) let halves = halves
                    forParts { range in
                        let values = Scratch.first.floats(range.count * columns)
                        sum(range, values)
                        tributary_bf16_round(
                            KernelPath.active.rawValue, values, columns, range.count, columns, 1,
                            halves + range.lowerBound * stride, stride)
                    }
                }
            }
        return QuantizedMatrix(rows: rows, columns: columns, weights)
    }
}
