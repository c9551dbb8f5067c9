namespace Mustafar.Models.Chat;

/// <summary>Roles that chat templates know. Many know further ones, such as developer or tool.</summary>
public static class ChatRoles
{
    /// <summary>Whoever set the model up.</summary>
    public const string System = "system";

    /// <summary>Whoever asks.</summary>
    public const string User = "user";

    /// <summary>The model.</summary>
    public const string Assistant = "assistant";
}

/// <summary>What one says at a time.</summary>
/// <param name="Role">Who: one of <see cref="ChatRoles"/>, or another that the chat template knows.</param>
/// <param name="Content">What.</param>
/// <param name="ReasoningContent">What a model thought before it said it, for templates that write it; nothing if null.</param>
public sealed record ChatTurn(string Role, string Content, string? ReasoningContent = null);
