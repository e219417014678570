/// What libFuzzer calls: one program for all targets, of which `TRIBUTARY_FUZZ_TARGET` names one.
///
/// A new target is a file of this folder with a `FuzzTarget`, and its row in `all`.

import FoundationEssentials

struct FuzzTarget: Sendable {
    let name: String
    /// Inputs to begin with, all of them accepted; written into the corpus folder.
    let seeds: @Sendable () -> [[UInt8]]
    /// Takes any bytes; returns why they are refused, or nil if they are accepted. A trap, or a precondition that does not hold,
    /// is a finding.
    let run: @Sendable (_ input: [UInt8]) -> String?

    static let all: [FuzzTarget] = [
        .update, .frame, .safetensors, .tokenizer, .data, .gguf, .checkpoint, .adapter,
    ]

    static let chosen: FuzzTarget = {
        let name = ProcessInfo.processInfo.environment["TRIBUTARY_FUZZ_TARGET"] ?? ""
        guard let target = all.first(where: { $0.name == name }) else {
            fatalError("TRIBUTARY_FUZZ_TARGET is \"\(name)\": use \(all.map(\.name).joined(separator: ", "))")
        }
        return target
    }()
}

@_cdecl("LLVMFuzzerInitialize")
public func initialize(_ count: UnsafeMutablePointer<CInt>, _ arguments: UnsafeMutableRawPointer) -> CInt {
    if let folder = ProcessInfo.processInfo.environment["TRIBUTARY_FUZZ_SEEDS"] {
        for (index, seed) in FuzzTarget.chosen.seeds().enumerated() {
            // A seed that is refused leads nowhere.
            if let refusal = FuzzTarget.chosen.run(seed) { fatalError("seed \(index) is refused: \(refusal)") }
            _ = FileManager.default.createFile(atPath: "\(folder)/seed-\(index)", contents: Data(seed))
        }
    }
    return 0
}

@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    _ = FuzzTarget.chosen.run(Array(UnsafeBufferPointer(start: bytes, count: count)))
    return 0
}
