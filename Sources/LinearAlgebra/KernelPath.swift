/// Which instructions the engine's own kernels use: the best that the processor has, or what `TRIBUTARY_KERNELS` says.

import CKernels
import FoundationEssentials
import Primitives

/// An instruction set that every kernel in CKernels is compiled for. All of them give the same bits; matrix products
/// run in OpenBLAS, which chooses its own (`BLAS.coreName`).
public enum KernelPath: Int32, Sendable, CaseIterable {
    /// What every processor of the platform has (SSE2 or NEON).
    case scalar = 0
    case avx2 = 1
    case avx512 = 2

    /// As `TRIBUTARY_KERNELS` spells it and `doctor` prints it.
    public var name: String {
        switch self {
        case .scalar: "scalar"
        case .avx2: "avx2"
        case .avx512: "avx512"
        }
    }

    public var isSupported: Bool { tributary_path_supported(rawValue) != 0 }

    /// Those that this processor has, slowest first.
    public static var supported: [KernelPath] { allCases.filter(\.isSupported) }

    /// The path that kernels take in this process; the best supported one if `TRIBUTARY_KERNELS` is wrong.
    public static let active: KernelPath = (try? choose(environment)) ?? supported.last!

    /// The path in use.
    /// - Throws: `Failure` if `TRIBUTARY_KERNELS` names a path that is unknown, or that this processor lacks.
    public static func current() throws(Failure) -> KernelPath { try choose(environment) }

    private static var environment: String? { ProcessInfo.processInfo.environment["TRIBUTARY_KERNELS"] }

    /// The path for a value of `TRIBUTARY_KERNELS`; nil or empty means the best.
    public static func choose(_ text: String?) throws(Failure) -> KernelPath {
        guard let text, !text.isEmpty else { return supported.last! }
        let names = supported.map(\.name).joined(separator: ", ")
        guard let path = allCases.first(where: { $0.name == text }) else {
            throw Failure(
                .badConfiguration, "TRIBUTARY_KERNELS is \"\(text)\", which is no kernel path; this processor has \(names)")
        }
        guard path.isSupported else {
            throw Failure(.badConfiguration, "TRIBUTARY_KERNELS is \(text), which this processor lacks; it has \(names)")
        }
        return path
    }
}
