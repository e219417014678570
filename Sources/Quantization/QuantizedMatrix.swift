/// A frozen weight matrix in the form in which it is held: decoded a tile at a time, never as a whole.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

/// `--quantize`: how the linear maps' weights are held.
public enum WeightForm: String, Codable, Sendable, CaseIterable {
    /// As the checkpoint stores them, mapped.
    case stored
    /// Decoded to float32.
    case none
    /// Our 8-bit form, from a checkpoint that is not quantized.
    case int8
    /// NF4 with nested scales, from a checkpoint that is not quantized.
    case nf4
}

/// A matrix `[rows, columns]` (outputs, inputs), row-major, in one of the stored or quantized forms.
public final class QuantizedMatrix: Sendable {
    enum Form: Sendable {
        case dense([Float])
        case stored(DenseSource)
        case fourBit(FourBitCodes, name: String)
        case int8(Int8Codes)
    }

    /// Outputs of the linear map.
    public let rows: Int
    /// Inputs of the linear map.
    public let columns: Int
    let form: Form

    init(rows: Int, columns: Int, _ form: Form) {
        precondition(rows > 0 && columns > 0)
        self.rows = rows
        self.columns = columns
        self.form = form
    }

    public convenience init(_ values: [Float], rows: Int, columns: Int) {
        precondition(values.count == rows * columns)
        self.init(rows: rows, columns: columns, .dense(values))
    }

    public convenience init(_ codes: FourBitCodes, rows: Int, columns: Int, name: String = "nf4") {
        precondition(codes.packed.count >= (rows * columns + 1) / 2)
        precondition(codes.scales.count == (rows * columns + codes.blockSize - 1) / codes.blockSize)
        self.init(rows: rows, columns: columns, .fourBit(codes, name: name))
    }

    public convenience init(_ codes: Int8Codes, rows: Int, columns: Int) {
        precondition(codes.codes.count == rows * columns && codes.scales.count == rows * ((columns + 63) / 64))
        self.init(rows: rows, columns: columns, .int8(codes))
    }

    /// The weights of a tensor as they are stored.
    /// - Throws: `Failure` if the tensor is not `[rows, columns]` of F32, F16 or BF16
    public convenience init(stored tensor: StoredTensor, rows: Int, columns: Int) throws(Failure) {
        guard tensor.shape == [rows, columns], rows > 0, columns > 0 else {
            throw Failure(
                .badData, "\(tensor.file.path): tensor \(tensor.name) has shape \(tensor.shape), but \([rows, columns]) is needed"
            )
        }
        self.init(rows: rows, columns: columns, .stored(try DenseSource(tensor)))
    }

    /// "f32", "f16", "bf16", "nf4", "fp4", "int8", or the name of GGML's blocks: "q4_k".
    public var formatName: String {
        switch form {
        case .dense: "f32"
        case .stored(let source): source.tensor.dtype.rawValue.lowercased()
        case .fourBit(_, let name): name
        case .int8: "int8"
        }
    }

    /// Bytes that the matrix takes in memory or in its mapped file.
    public var byteCount: Int {
        switch form {
        case .dense(let values): 4 * values.count
        case .stored(let source): source.tensor.range.count
        case .fourBit(let codes, _): codes.byteCount
        case .int8(let codes): codes.codes.count + 4 * codes.scales.count
        }
    }

    /// Writes the tile `rows` x `columns` as floats, `stride` floats from row to row, on the calling thread.
    public func decode(
        rows: Range<Int>, columns part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath = .active
    ) {
        precondition(rows.lowerBound >= 0 && rows.upperBound <= self.rows && part.lowerBound >= 0 && part.upperBound <= columns)
        precondition(stride >= part.count)
        guard !rows.isEmpty, !part.isEmpty else { return }
        switch form {
        case .dense(let values):
            tributary_decode_f32(
                values, columns, rows.lowerBound, rows.upperBound, part.lowerBound, part.upperBound, target, stride)
        case .stored(let source): source.decode(columns: columns, rows: rows, part, into: target, stride: stride, path: path)
        case .fourBit(let codes, _): codes.decode(columns: columns, rows: rows, part, into: target, stride: stride, path: path)
        case .int8(let codes):
            tributary_decode_int8(
                path.rawValue, codes.codes, codes.scales, columns, rows.lowerBound, rows.upperBound, part.lowerBound,
                part.upperBound, target, stride)
        }
    }

    /// The tile as floats, `lead` floats from row to row: in place where the matrix is held as floats, else decoded
    /// into this thread's `Scratch.weights`. The pointer is valid inside `body`, until the next use of that scratch.
    public func withTile<Result>(
        rows: Range<Int>, columns part: Range<Int>, _ body: (_ tile: UnsafePointer<Float>, _ lead: Int) -> Result
    ) -> Result {
        let offset = rows.lowerBound * columns + part.lowerBound
        switch form {
        case .dense(let values):
            return values.withUnsafeBufferPointer { body($0.baseAddress! + offset, columns) }
        case .stored(let source):
            if let floats = source.floats { return body(floats + offset, columns) }
        default: break
        }
        let tile = Scratch.weights.floats(rows.count * part.count)
        decode(rows: rows, columns: part, into: tile, stride: part.count)
        return body(tile, part.count)
    }

    /// The whole matrix, `[rows, columns]`, over all threads: for starts, exports and tests, not for training.
    public func decoded() -> [Float] {
        [Float](unsafeUninitializedCapacity: rows * columns) { target, initialized in
            nonisolated(unsafe) let base = target.baseAddress!
            let part = max(1, (1 << 18) / columns)
            Parallel.forEach(count: (rows + part - 1) / part) { index in
                let range = Parallel.range(index, of: rows, size: part)
                decode(rows: range, columns: 0..<columns, into: base + range.lowerBound * columns, stride: columns)
            }
            initialized = rows * columns
        }
    }

    /// The weight of a linear map in the form that is asked for.
    ///
    /// - Throws: `Failure` if the checkpoint is quantized and another quantization is asked for, if its quantization
    ///   is damaged, or if a weight is not finite
    public static func load(
        map: LinearMap, from checkpoint: CheckpointFolder, as form: WeightForm
    ) throws(Failure) -> QuantizedMatrix {
        let tensor = try checkpoint.tensor(map.name + ".weight")
        let (rows, columns) = (map.outputs, map.inputs)
        if checkpoint.isBitsAndBytes4Bit(map.name) {
            guard form == .stored || form == .none else {
                throw Failure(
                    .usage,
                    "\(checkpoint.path) is quantized already, so that --quantize \(form.rawValue) is not possible: use stored, or none for float32"
                )
            }
            let (codes, name) = try FourBitCodes.load(map: map, from: checkpoint)
            let matrix = QuantizedMatrix(codes, rows: rows, columns: columns, name: name)
            return form == .stored ? matrix : QuantizedMatrix(matrix.decoded(), rows: rows, columns: columns)
        }
        guard !tensor.dtype.isBlocks || form == .stored || form == .none else {
            throw Failure(
                .usage,
                "\(checkpoint.path) is quantized already, so that --quantize \(form.rawValue) is not possible: use stored, or none for float32"
            )
        }
        switch form {
        case .stored: return try QuantizedMatrix(stored: tensor, rows: rows, columns: columns)
        case .none:
            let stored = try QuantizedMatrix(stored: tensor, rows: rows, columns: columns)
            if case .stored(let source) = stored.form, source.floats != nil { return stored }
            return QuantizedMatrix(stored.decoded(), rows: rows, columns: columns)
        case .nf4: return QuantizedMatrix(try NF4.encode(tensor), rows: rows, columns: columns)
        case .int8: return QuantizedMatrix(try Int8Codes(tensor, rows: rows, columns: columns), rows: rows, columns: columns)
        }
    }
}
