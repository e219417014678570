/// A frozen weight matrix in the form in which it is held: decoded a tile at a time, never as a whole.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

/// A matrix `[rows, columns]` (outputs, inputs), row-major, in one of the stored or quantized forms.
public final class QuantizedMatrix: Sendable {
    /// Outputs of the linear map.
    public let rows: Int
    /// Inputs of the linear map.
    public let columns: Int
    let weights: any PackedWeights

    init(rows: Int, columns: Int, _ weights: any PackedWeights) {
        precondition(rows > 0 && columns > 0)
        self.rows = rows
        self.columns = columns
        self.weights = weights
    }

    public convenience init(_ values: [Float], rows: Int, columns: Int) {
        precondition(values.count == rows * columns)
        self.init(
            rows: rows, columns: columns, FloatWeights(count: values.count) { $0.update(from: values, count: values.count) })
    }

    public convenience init(_ codes: FourBitCodes, rows: Int, columns: Int) {
        precondition(codes.packed.count >= (rows * columns + 1) / 2)
        precondition(codes.scales.count == (rows * columns + codes.blockSize - 1) / codes.blockSize)
        self.init(rows: rows, columns: columns, codes)
    }

    public convenience init(_ codes: Int8Codes, rows: Int, columns: Int) {
        precondition(codes.codes.count == rows * columns && codes.scales.count == rows * ((columns + 63) / 64))
        self.init(rows: rows, columns: columns, codes)
    }

    /// The weights of a tensor as they are stored.
    /// - Throws: `Failure` if the tensor is not `[rows, columns]` of F32, F16, BF16 or GGML's blocks
    public convenience init(stored tensor: StoredTensor, rows: Int, columns: Int) throws(Failure) {
        let weights: any PackedWeights =
            tensor.dtype.isBlocks
            ? try GGMLBlocks(tensor, rows: rows, columns: columns) : try StoredWeights(tensor, rows: rows, columns: columns)
        self.init(rows: rows, columns: columns, weights)
    }

    /// A row of `WeightFormat.all`.
    public var formatName: String { weights.formatName }

    /// Of a matrix in 4 bits; nil for any other.
    public var fourBitCodes: FourBitCodes? { weights as? FourBitCodes }

    /// Bytes that the matrix takes in memory or in its mapped file.
    public var byteCount: Int { weights.byteCount }

    /// Gives mapped pages back, where the matrix lies in a file: they are read again when touched.
    public func release() { weights.release() }

    /// Writes the tile `rows` x `columns` as floats, `stride` floats from row to row, on the calling thread.
    public func decode(
        rows: Range<Int>, columns part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath = .active
    ) {
        precondition(rows.lowerBound >= 0 && rows.upperBound <= self.rows && part.lowerBound >= 0 && part.upperBound <= columns)
        precondition(stride >= part.count)
        guard !rows.isEmpty, !part.isEmpty else { return }
        weights.decode(columns: columns, rows: rows, part, into: target, stride: stride, path: path)
    }

    /// The tile as floats, `lead` floats from row to row: in place where the matrix is held as floats, else decoded
    /// into this thread's `Scratch.weights`. The pointer is valid inside `body`, until the next use of that scratch.
    public func withTile<Result>(
        rows: Range<Int>, columns part: Range<Int>, path: KernelPath = .active,
        _ body: (_ tile: UnsafePointer<Float>, _ lead: Int) -> Result
    ) -> Result {
        if let floats = weights.floats { return body(floats + rows.lowerBound * columns + part.lowerBound, columns) }
        let tile = Scratch.weights.floats(rows.count * part.count)
        decode(rows: rows, columns: part, into: tile, stride: part.count, path: path)
        return body(tile, part.count)
    }

    /// The whole matrix, `[rows, columns]`, over all threads: for starts, exports and tests, not for training.
    public func decoded() -> [Float] {
        [Float](unsafeUninitializedCapacity: rows * columns) { target, initialized in
            decode(into: target.baseAddress!)
            initialized = rows * columns
        }
    }

    private func decode(into target: UnsafeMutablePointer<Float>) {
        nonisolated(unsafe) let base = target
        let part = max(1, (1 << 18) / columns)
        Parallel.forEach(count: (rows + part - 1) / part) { index in
            let range = Parallel.range(index, of: rows, size: part)
            decode(rows: range, columns: 0..<columns, into: base + range.lowerBound * columns, stride: columns)
        }
    }

    /// The Frobenius norms of the weights, and of the weights less this matrix, over all threads; summed in double.
    public func error(from source: WeightSource) -> (norm: Double, error: Double) {
        precondition(source.rows == rows && source.columns == columns)
        let part = max(1, (1 << 16) / columns)
        let count = (rows + part - 1) / part
        var sums = [Double](repeating: 0, count: 2 * count)
        sums.withUnsafeMutableBufferPointer { sums in
            nonisolated(unsafe) let sums = sums
            Parallel.forEach(count: count) { index in
                let range = Parallel.range(index, of: rows, size: part)
                let values = Scratch.first.floats(range.count * columns)
                let own = Scratch.second.floats(range.count * columns)
                source.read(range.lowerBound * columns..<range.upperBound * columns, values)
                decode(rows: range, columns: 0..<columns, into: own, stride: columns)
                for place in 0..<range.count * columns {
                    let (value, rest) = (Double(values[place]), Double(values[place]) - Double(own[place]))
                    sums[2 * index] += value * value
                    sums[2 * index + 1] += rest * rest
                }
            }
        }
        func root(_ first: Int) -> Double { stride(from: first, to: 2 * count, by: 2).reduce(0) { $0 + sums[$1] }.squareRoot() }
        return (root(0), root(1))
    }

    /// The weight of a linear map in the form that is asked for. Where it is encoded or decoded, the mapped pages from which
    /// it is made are given back.
    ///
    /// - Throws: `Failure` if the checkpoint is quantized and another quantization is asked for, if its quantization
    ///   is damaged, or if a weight is not finite
    public static func load(
        map: LinearMap, from checkpoint: CheckpointFolder, as form: WeightForm
    ) throws(Failure) -> QuantizedMatrix {
        let tensor = try checkpoint.tensor(map.name + ".weight")
        let (rows, columns) = (map.outputs, map.inputs)
        if let format = form.format {
            guard !checkpoint.isQuantized(map.name) else {
                throw Failure(
                    .usage,
                    "\(checkpoint.path) is quantized already, so that --quantize \(form.rawValue) is not possible: use stored, or none for float32"
                )
            }
            return try format.encoded(try WeightSource(tensor, rows: rows, columns: columns))
        }
        let stored = QuantizedMatrix(rows: rows, columns: columns, try open(map, checkpoint, tensor))
        guard form == .none, stored.weights.floats == nil else { return stored }
        let floats = FloatWeights(count: rows * columns) { stored.decode(into: $0) }
        tensor.release()
        return QuantizedMatrix(rows: rows, columns: columns, floats)
    }

    private static func open(
        _ map: LinearMap, _ checkpoint: CheckpointFolder, _ tensor: StoredTensor
    ) throws(Failure) -> any PackedWeights {
        for format in WeightFormat.all {
            if let weights = try format.open(map, checkpoint) { return weights }
        }
        throw Failure(
            .badData,
            "\(tensor.file.path): tensor \(tensor.name) is stored as \(tensor.dtype.rawValue), which is none of \(WeightFormat.all.map(\.name).joined(separator: ", "))"
        )
    }
}
