/// Weights as the checkpoint stores them, F32, F16 or BF16: read where the file is mapped, without a copy.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

struct DenseSource: Sendable {
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

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath = .active
    ) {
        let bytes = tensor.bytes.baseAddress
        switch tensor.dtype {
        case .bf16:
            tributary_decode_bf16(
                path.rawValue, bytes, columns, rows.lowerBound, rows.upperBound, part.lowerBound, part.upperBound, target, stride)
        case .f16:
            tributary_decode_f16(
                path.rawValue, bytes, columns, rows.lowerBound, rows.upperBound, part.lowerBound, part.upperBound, target, stride)
        default:
            tributary_decode_f32(
                bytes, columns, rows.lowerBound, rows.upperBound, part.lowerBound, part.upperBound, target, stride)
        }
    }

    /// The stored floats themselves, if they are floats on a 4-byte boundary.
    var floats: UnsafePointer<Float>? {
        guard tensor.dtype == .f32, let base = tensor.bytes.baseAddress, UInt(bitPattern: base) % 4 == 0 else { return nil }
        return base.assumingMemoryBound(to: Float.self)
    }
}
