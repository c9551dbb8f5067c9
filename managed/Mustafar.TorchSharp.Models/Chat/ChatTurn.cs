namespace Mustafar.Models.Chat;

/// <summary>Roles that chat templates support. Many support others too, such as developer or tool.</summary>
public static class ChatRoles
{
    /// <summary>The system message.</summary>
    public const string System = "system";

    /// <summary>The user.</summary>
    public const string User = "user";

    /// <summary>The model.</summary>
    public const string Assistant = "assistant";
}

/// <summary>One turn of a chat.</summary>
/// <param name="Role">Its role: one of <see cref="ChatRoles"/>, or another that the chat template supports.</param>
/// <param name="Content">Its text.</param>
/// <param name="ReasoningContent">The model's reasoning before it, for templates that render it; none if null.</param>
public sealed record ChatTurn(string Role, string Content, string? ReasoningContent = null);
