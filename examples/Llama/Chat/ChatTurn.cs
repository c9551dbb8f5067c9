namespace Mustafar.Examples.Llama.Chat;

/// <summary>Who says something in a chat.</summary>
public enum ChatSpeaker
{
    /// <summary>Whoever set the model up.</summary>
    System,

    /// <summary>Whoever asks.</summary>
    User,

    /// <summary>The model.</summary>
    Assistant,
}

/// <summary>What one says at a time.</summary>
/// <param name="Speaker">Who.</param>
/// <param name="Text">What.</param>
public sealed record ChatTurn(ChatSpeaker Speaker, string Text);
