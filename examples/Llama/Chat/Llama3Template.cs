using System.Globalization;
using Mustafar.Examples.Llama.Tokenizer;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>The chats of Llama 3; those of 3.1 and later tell the model dates first.</summary>
/// <param name="today">The date that a chat of Llama 3.1 or later begins with; a chat of Llama 3 without dates if null.</param>
public sealed class Llama3Template(DateOnly? today = null) : ChatTemplate
{
    /// <summary>The template's name.</summary>
    internal const string FamilyName = "llama3";

    /// <inheritdoc/>
    public override string Name => FamilyName;

    /// <inheritdoc/>
    public override string EndOfReply => "<|eot_id|>";

    private protected override IReadOnlyList<string> Tokens =>
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];

    private protected override void Write(List<TextPart> parts, IReadOnlyList<ChatTurn> turns, int from)
    {
        if (from == 0)
        {
            parts.Add(new TextPart("<|begin_of_text|>", IsMarkup: true));
            if (today is DateOnly date)
            {
                bool hasSystem = turns[0].Speaker == ChatSpeaker.System;
                string written = date.ToString("dd MMM yyyy", CultureInfo.InvariantCulture);
                parts.Add(new TextPart(
                    $"{Header(ChatSpeaker.System)}Cutting Knowledge Date: December 2023\nToday Date: {written}\n\n", IsMarkup: true));
                parts.Add(new TextPart(hasSystem ? turns[0].Text.Trim() : "", IsMarkup: false));
                parts.Add(new TextPart(EndOfReply, IsMarkup: true));
                from = hasSystem ? 1 : 0;
            }
        }

        foreach (ChatTurn turn in turns.Skip(from))
        {
            parts.Add(new TextPart(Header(turn.Speaker), IsMarkup: true));
            parts.Add(new TextPart(turn.Text.Trim(), IsMarkup: false));
            parts.Add(new TextPart(EndOfReply, IsMarkup: true));
        }

        parts.Add(new TextPart(Header(ChatSpeaker.Assistant), IsMarkup: true));
    }

    private static string Header(ChatSpeaker speaker) => $"<|start_header_id|>{ChatTemplates.NameOf(speaker)}<|end_header_id|>\n\n";
}
