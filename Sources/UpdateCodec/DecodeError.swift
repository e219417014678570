/// Why received bytes are not a state of the expected layout.

import Primitives

public enum DecodeError: Error, Equatable, Sendable, CustomStringConvertible {
    /// Fewer bytes than a header and a checksum.
    case tooShort(bytes: Int, minimum: Int)
    /// More bytes than any state of this layout takes in any allowed codec.
    case tooLong(bytes: Int, limit: Int)
    /// The first four bytes are not `TUPD`.
    case notAnUpdate(UInt32)
    /// A later format.
    case unknownVersion(UInt8)
    /// The checksum at the end does not belong to the bytes before it.
    case damaged(stored: UInt32, computed: UInt32)
    /// No codec of this number is allowed here; those that are.
    case codecNotAllowed(UInt8, allowed: [String])
    case reservedNotZero(UInt16)
    /// Encoded under another layout: other tensors, shapes, ranks or scales.
    case otherLayout(expected: Digest, found: Digest)
    case wrongCount(expected: Int, found: UInt64)
    case wrongPayload(expected: Int, found: Int)
    /// A field before the tensor at this index of the layout that no encoder writes.
    case wrongHeader(tensor: Int, field: String, value: String)
    /// More values of a tensor, or of all up to it, than the codec's density allows.
    case tooManyKept(tensor: Int, kept: Int, allowed: Int)
    /// Bytes of a tensor that are not the code of as many values as announced, all within the tensor.
    case wrongCode(tensor: Int)
    /// NaN or infinity at this index of the flat values.
    case notFinite(Int)

    public var description: String {
        switch self {
        case .tooShort(let bytes, let minimum):
            "the update has \(bytes) bytes and needs at least \(minimum): it was cut off, send it again"
        case .tooLong(let bytes, let limit):
            "the update has \(bytes) bytes and this layout allows at most \(limit): it belongs to another adapter"
        case .notAnUpdate(let magic):
            "the bytes begin with 0x\(String(magic, radix: 16)) and not with TUPD: they are not an encoded update"
        case .unknownVersion(let version):
            "the update has format version \(version) and this program reads version \(EncodedState.version): use the same Tributary version on both sides"
        case .damaged(let stored, let computed):
            "the update is damaged: its checksum is 0x\(String(stored, radix: 16)) and its bytes give 0x\(String(computed, radix: 16)), send it again"
        case .codecNotAllowed(let identifier, let allowed):
            "the update is encoded with codec \(identifier), which is not allowed here; allowed are \(allowed.joined(separator: ", "))"
        case .reservedNotZero(let value):
            "the update's reserved field is \(value) and must be 0: use the same Tributary version on both sides"
        case .otherLayout(let expected, let found):
            "the update has layout \(found.short) and \(expected.short) was expected: it belongs to an adapter with other tensors, ranks or scales"
        case .wrongCount(let expected, let found):
            "the update says that it holds \(found) values and its layout has \(expected): it was made by a defective program"
        case .wrongPayload(let expected, let found):
            "the update's values take \(found) bytes and should take \(expected): it was made by a defective program"
        case .wrongHeader(let tensor, let field, let value):
            "tensor \(tensor) of the update has \(field) \(value), which no update has: it was made by a defective program, or its training diverged"
        case .tooManyKept(let tensor, let kept, let allowed):
            "the update keeps \(kept) values up to tensor \(tensor) where \(allowed) are allowed: it was made with another density than the plan's"
        case .wrongCode(let tensor):
            "the code of tensor \(tensor) of the update is not that of its values: it was made by a defective program"
        case .notFinite(let index):
            "value \(index) of the update is not a finite number: the training that made it diverged, lower the learning rate"
        }
    }
}
