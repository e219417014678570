/// The formats of a linear map's weights, one row of a table for each, and what `--quantize` can ask for.

import Checkpoints
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
    /// Scales included, of a matrix of whole blocks.
    public let bitsPerWeight: Double
    /// Weights that share a scale; 1 where there is none.
    public let blockSize: Int
    /// Of what `encode` writes; nil where we only read.
    public let errorBound: ErrorBound?
    /// A stored F32, F16 or BF16 matrix of `rows` x `columns` in this format; nil where we only read. Gives mapped pages back.
    let encode: (@Sendable (StoredTensor, _ rows: Int, _ columns: Int) throws(Failure) -> any PackedWeights)?
    /// The map's weight where it lies in the checkpoint; nil if it is stored in another format.
    let open: @Sendable (LinearMap, CheckpointFolder) throws(Failure) -> (any PackedWeights)?

    init(
        name: String, bitsPerWeight: Double, blockSize: Int, errorBound: ErrorBound? = nil,
        encode: (@Sendable (StoredTensor, _ rows: Int, _ columns: Int) throws(Failure) -> any PackedWeights)? = nil,
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
    public static let all: [WeightFormat] = [.f32, .f16, .bf16, .int8, .nf4, .fp4]

    public static func named(_ name: String) -> WeightFormat? { all.first { $0.name == name } }

    /// Whether `--quantize` can ask for it.
    public var isEncodable: Bool { encode != nil }

    /// A stored F32, F16 or BF16 matrix in this format.
    /// - Throws: `Failure` if we only read this format, or if a weight is not finite
    public func encoded(_ tensor: StoredTensor, rows: Int, columns: Int) throws(Failure) -> QuantizedMatrix {
        guard let encode else { throw Failure(.usage, "\(name) is read, but not written") }
        return QuantizedMatrix(rows: rows, columns: columns, try encode(tensor, rows, columns))
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
