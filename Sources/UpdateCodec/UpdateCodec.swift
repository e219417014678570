/// How an adapter's values become bytes, as plans write it: `f32`, `int8`, `compeft:0.1:global`. One row for each codec.

import Adapters
import Primitives

/// A codec with its parameters. Equal when their texts are.
public struct UpdateCodec: Sendable {
    /// Every codec, in the order in which they are listed to people. A new codec is one file and one row.
    static let table: [any PayloadCodec.Type] = [
        Float32Codec.self, BFloat16Codec.self, Int8Codec.self, TopKCodec.self, ComPEFTCodec.self,
    ]

    /// What can be written, one form for each codec.
    public static var forms: [String] { table.map { $0.form } }

    let payload: any PayloadCodec

    init(_ payload: some PayloadCodec) { self.payload = payload }

    /// - Throws: `Failure(.usage)` that says what is possible.
    public init(parsing text: String) throws(Failure) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard let row = Self.table.first(where: { $0.name == parts[0] }) else {
            throw Failure(.usage, "\"\(text)\" is no codec: use \(Self.forms.joined(separator: ", "))")
        }
        guard let payload = try row.init(parsing: Array(parts.dropFirst())) else {
            throw Failure(.usage, "\"\(text)\" is not how the codec \(row.name) is written: use \(row.form)")
        }
        self.payload = payload
    }

    /// Every value as it is.
    public static let float32 = UpdateCodec(Float32Codec())
    /// Every value to the nearest bfloat16.
    public static let bfloat16 = UpdateCodec(BFloat16Codec())
    /// One byte a value and one scale a tensor, rounded at random without bias.
    public static let int8 = UpdateCodec(Int8Codec())
    /// The share `density` of each tensor that is largest in magnitude, as bfloat16. 0 < density <= 1.
    public static func topK(_ density: Double) -> UpdateCodec { UpdateCodec(TopKCodec(density: density)) }
    /// The signs of the largest magnitudes and one scale (ComPEFT). 0 < density <= 1.
    public static func compeft(
        density: Double, scope: ComPEFTScope = .tensor, scale: ComPEFTScale = .meanMagnitude
    ) -> UpdateCodec { UpdateCodec(ComPEFTCodec(density: density, scope: scope, scale: scale)) }

    /// The byte that names the codec in an encoded update; never used again for another codec.
    public var identifier: UInt8 { type(of: payload).identifier }
    /// The codec without its parameters.
    public var name: String { type(of: payload).name }

    /// True if decoding gives back what was encoded, bit for bit: `f32` only.
    public var isExact: Bool { payload.isExact }
    /// False where feeding back what was lost is of no use (`f32`) or can diverge (a scale of alpha x sigma).
    public var allowsErrorFeedback: Bool { payload.allowsErrorFeedback }
    /// True if encoding draws random numbers: `int8`.
    public var usesRandomness: Bool { payload.usesRandomness }
}

extension UpdateCodec: Hashable, CustomStringConvertible {
    /// The text in plans, with parameters in one way of writing them.
    public var description: String { ([name] + payload.parameters).joined(separator: ":") }

    public static func == (left: UpdateCodec, right: UpdateCodec) -> Bool { left.description == right.description }
    public func hash(into hasher: inout Hasher) { hasher.combine(description) }
}

extension UpdateCodec: Codable {
    public init(from decoder: any Decoder) throws {
        try self.init(parsing: decoder.singleValueContainer().decode(String.self))
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}
