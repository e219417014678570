/// One turn of a conversation.

public struct ChatMessage: Equatable, Sendable {
    /// "system", "user", "assistant", ...
    public let role: String
    public let content: String

    public init(role: String, content: String) {
        self.role = role
        self.content = content
    }

    var isAssistant: Bool { role == "assistant" }
}
