/// The formats of a linear map's weights, one row of a table for each, and what `--quantize` can ask for.

import Checkpoints
import LinearAlgebra
import Primitives

/// A new format is a file with its `PackedWeights` and its row, a line in `all`, and its golden codes in a test.
public struct WeightFormat: Sendable {
    /// `|decoded - w| <= ofBlock x (largest |w| of its block) + ofMatrix x (largest |w| of the matrix)`, apart from the rounding
    /// of single precision.
    public struct ErrorBound: Sendable, Equatable {
        public let ofBlock: Double
        /// What the scales' own quantization adds.
        public let ofMatrix: Double

        public init(ofBlock: Double, ofMatrix: Double = 0) {
            self.ofBlock = ofBlock
            self.ofMatrix = ofMatrix
        }
    }

    /// As `--quantize` and reports spell it: `nf4`.
    public let name: String
    /// Scales included, of a matrix of whole blocks; a row's one scale left out.
    public let bitsPerWeight: Double
    /// Weights that share a scale; 1 where there is none, 0 where a whole row shares one.
    public let blockSize: Int
    /// Of what `encode` writes; nil where we only read.
    public let errorBound: ErrorBound?
    /// Nil where we only read.
    let encode: (@Sendable (WeightSource) throws(Failure) -> any PackedWeights)?
    /// The map's weight where it lies in the checkpoint; nil if it is stored in another format.
    let open: @Sendable (LinearMap, CheckpointFolder) throws(Failure) -> (any PackedWeights)?

    init(
        name: String, bitsPerWeight: Double, blockSize: Int, errorBound: ErrorBound? = nil,
        encode: (@Sendable (WeightSource) throws(Failure) -> any PackedWeights)? = nil,
        open: @escaping @Sendable (LinearMap, CheckpointFolder) throws(Failure) -> (any PackedWeights)? = {
            (_, _) throws(Failure) in nil
        }
    ) {
        self.name = name
        self.bitsPerWeight = bitsPerWeight
        self.blockSize = blockSize
        self.errorBound = errorBound
        self.encode = encode
        self.open = open
    }

    /// Every format.
    public static let all: [WeightFormat] = [.f32, .f16, .bf16, .int8, .nf4, .fp4, .llmInt8] + ggmlBlocks

    public static func named(_ name: String) -> WeightFormat? { all.first { $0.name == name } }

    /// Whether `--quantize` can ask for it.
    public var isEncodable: Bool { encode != nil }

    /// A matrix in this format.
    /// - Throws: `Failure` if we only read this format, or if a weight is not finite
    public func encoded(_ source: WeightSource) throws(Failure) -> QuantizedMatrix {
        guard let encode else { throw Failure(.usage, "\(name) is read, but not written") }
        return QuantizedMatrix(rows: source.rows, columns: source.columns, try encode(source))
    }
}

/// The matrix that an encoder reads, `[rows, columns]`.
public struct WeightSource: Sendable {
    /// For errors.
    public let name: String
    public let rows: Int
    public let columns: Int
    /// Writes the values of a range of the flattened matrix; may be called from several threads.
    let read: @Sendable (Range<Int>, UnsafeMutablePointer<Float>) -> Void

    var count: Int { rows * columns }

    /// A stored tensor, whose mapped pages are given back as they are read.
    /// - Throws: `Failure` if it is not `[rows, columns]` of F32, F16 or BF16
    public init(_ tensor: StoredTensor, rows: Int, columns: Int) throws(Failure) {
        let stored = try StoredWeights(tensor, rows: rows, columns: columns)
        (name, self.rows, self.columns) = ("tensor \(tensor.name)", rows, columns)
        read = { stored.read($0, into: $1) }
    }

    public init(_ values: [Float], name: String = "the matrix", rows: Int, columns: Int) {
        precondition(values.count == rows * columns)
        (self.name, self.rows, self.columns) = (name, rows, columns)
        read = { range, target in
            values.withUnsafeBufferPointer { target.update(from: $0.baseAddress! + range.lowerBound, count: range.count) }
        }
    }

    /// All values, row-major.
    public func floats() -> [Float] {
        [Float](unsafeUninitializedCapacity: count) { target, initialized in
            nonisolated(unsafe) let base = target.baseAddress!
            let part = 1 << 18
            Parallel.forEach(count: (count + part - 1) / part) { index in
                let range = Parallel.range(index, of: count, size: part)
                read(range, base + range.lowerBound)
            }
            initialized = count
        }
    }
}

/// `--quantize`: how the linear maps' weights are held. Beside the two below, every format that has an encoder.
public struct WeightForm: RawRepresentable, Hashable, Sendable, CaseIterable {
    public let rawValue: String

    /// As the checkpoint stores them, mapped.
    public static let stored = WeightForm("stored")
    /// Decoded to float32.
    public static let none = WeightForm("none")
    public static let int8 = WeightForm("int8")
    public static let nf4 = WeightForm("nf4")
    public static let fp4 = WeightForm("fp4")

    public static var allCases: [WeightForm] {
        [.stored, .none] + WeightFormat.all.filter(\.isEncodable).map { WeightForm($0.name) }
    }

    private init(_ name: String) { rawValue = name }

    /// Nil for what is neither "stored", "none" nor a format with an encoder.
    public init?(rawValue: String) {
        guard let form = Self.allCases.first(where: { $0.rawValue == rawValue }) else { return nil }
        self = form
    }

    /// Into which weights are encoded; nil for `stored` and `none`.
    public var format: WeightFormat? { self == .stored || self == .none ? nil : WeightFormat.named(rawValue) }
}
