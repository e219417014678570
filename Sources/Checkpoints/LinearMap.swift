/// A linear map of a transformer block: what an adapter can be put on.

public struct LinearMap: Hashable, Codable, Sendable {
    /// The module's path in the checkpoint, without ".weight": `model.layers.0.self_attn.q_proj`.
    public let name: String
    /// Rows of the weight, `[outputs, inputs]`.
    public let outputs: Int
    /// Columns of the weight.
    public let inputs: Int

    public init(name: String, outputs: Int, inputs: Int) {
        self.name = name
        self.outputs = outputs
        self.inputs = inputs
    }

    /// The path of the block that it belongs to: `model.layers.0`.
    public var layerPath: String {
        let parts = name.split(separator: ".", omittingEmptySubsequences: false)
        guard let number = parts.firstIndex(where: { !$0.isEmpty && $0.allSatisfy(\.isNumber) }) else { return "" }
        return parts[...number].joined(separator: ".")
    }

    /// The last component of the path, by which `--target-modules` names it: `q_proj`.
    public var moduleName: String { String(name[(name.lastIndex(of: ".").map(name.index(after:)) ?? name.startIndex)...]) }
}
