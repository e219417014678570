/// `--compute`: the type to which the operands of the large matrix products are rounded.

import CKernels
import Primitives

/// What the products with the frozen weights, and with the factors beside them, are computed in. Sums are float32 always,
/// and so are norms, softmax, attention, the loss, the adapter and its gradient.
public enum ComputeType: String, Codable, Sendable, CaseIterable {
    case float32
    /// Operands rounded to bfloat16, sums in float32, with the AVX512-BF16 instructions.
    case bfloat16

    /// Whether this processor, on the kernel path in use, has the instructions.
    public var isSupported: Bool { self == .float32 || tributary_bf16_supported(KernelPath.active.rawValue) != 0 }
}

/// What a person asks for.
public enum ComputeChoice: String, Codable, Sendable, CaseIterable {
    /// bfloat16 where the processor has the instructions and the weights are not held as float32 on purpose.
    case auto
    case float32
    case bfloat16

    /// - Parameter holdsFloat32: whether the linear maps were decoded to float32 (`--quantize none`)
    /// - Throws: `Failure` if bfloat16 is asked for and the processor, or the kernel path that `TRIBUTARY_KERNELS` names,
    ///   lacks it
    public func type(holdsFloat32: Bool) throws(Failure) -> ComputeType {
        switch self {
        case .auto: return !holdsFloat32 && ComputeType.bfloat16.isSupported ? .bfloat16 : .float32
        case .float32: return .float32
        case .bfloat16:
            guard ComputeType.bfloat16.isSupported else {
                throw Failure(
                    .usage,
                    "--compute bfloat16 needs a processor with AVX512-BF16, which this one lacks or TRIBUTARY_KERNELS forbids (the kernels in use are \(KernelPath.active.name)); use auto or float32"
                )
            }
            return .bfloat16
        }
    }
}
