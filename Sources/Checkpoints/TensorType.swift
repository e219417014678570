/// How the elements of a stored tensor are encoded.

public enum TensorType: String, Sendable, CaseIterable {
    case f64 = "F64"
    case f32 = "F32"
    case f16 = "F16"
    case bf16 = "BF16"
    case i64 = "I64"
    case i32 = "I32"
    case i16 = "I16"
    case i8 = "I8"
    case u8 = "U8"
    case bool = "BOOL"
    // GGML's blocks (ggml-common.h), in GGUF files only: elements of one row that share scales.
    /// 32 codes of 4 bits with a scale.
    case q4_0 = "Q4_0"
    /// The same with a minimum.
    case q4_1 = "Q4_1"
    /// 32 codes of 5 bits with a scale.
    case q5_0 = "Q5_0"
    /// The same with a minimum.
    case q5_1 = "Q5_1"
    /// 32 bytes with a scale.
    case q8_0 = "Q8_0"
    /// 256 codes of 4 bits, with a scale and a minimum in 6 bits for each 32.
    case q4K = "Q4_K"
    /// The same of 5 bits.
    case q5K = "Q5_K"
    /// 256 codes of 6 bits, with a scale in 8 bits for each 16.
    case q6K = "Q6_K"

    /// Elements that are stored together: 1 except in GGML's blocks.
    public var blockElements: Int {
        switch self {
        case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0: 32
        case .q4K, .q5K, .q6K: 256
        default: 1
        }
    }

    /// Whether elements lie in GGML's blocks.
    public var isBlocks: Bool { blockElements > 1 }

    /// Bytes of one element, or of one block.
    public var size: Int {
        switch self {
        case .q4_0: 18
        case .q4_1: 20
        case .q5_0: 22
        case .q5_1: 24
        case .q8_0: 34
        case .q4K: 144
        case .q5K: 176
        case .q6K: 210
        case .f64, .i64: 8
        case .f32, .i32: 4
        case .f16, .bf16, .i16: 2
        case .i8, .u8, .bool: 1
        }
    }

    /// Its number in GGUF files (ggml.h, `ggml_type`); nil where we do not read it there.
    public var numberInGGUF: UInt32? {
        switch self {
        case .f32: 0
        case .f16: 1
        case .q4_0: 2
        case .q4_1: 3
        case .q5_0: 6
        case .q5_1: 7
        case .q8_0: 8
        case .q4K: 12
        case .q5K: 13
        case .q6K: 14
        case .bf16: 30
        case .f64, .i64, .i32, .i16, .i8, .u8, .bool: nil
        }
    }

    public var isFloat: Bool { [.f64, .f32, .f16, .bf16].contains(self) }

    /// As torch and bitsandbytes name it: `bfloat16`; blocks are bytes to them.
    public var torchName: String {
        switch self {
        case .f64: "float64"
        case .f32: "float32"
        case .f16: "float16"
        case .bf16: "bfloat16"
        case .i64: "int64"
        case .i32: "int32"
        case .i16: "int16"
        case .i8: "int8"
        case .u8: "uint8"
        case .bool: "bool"
        case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4K, .q5K, .q6K: "uint8"
        }
    }
}

/// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
@inlinable public func bfloat16Bits(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    if value.isNaN { return UInt16(truncatingIfNeeded: bits >> 16) | 0x40 }
    return UInt16(truncatingIfNeeded: (bits &+ 0x7FFF &+ (bits >> 16 & 1)) >> 16)
}

/// The float that a bfloat16 stands for; exact.
@inlinable public func bfloat16Value(_ bits: UInt16) -> Float { Float(bitPattern: UInt32(bits) << 16) }
