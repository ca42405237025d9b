//! The types of values that have a few words to choose from.

use std::fmt;
use std::str::FromStr;

/// A type whose values are a few words.
pub(super) trait Choice: Copy + 'static {
    fn word(self) -> &'static str;
}

macro_rules! choice {
    ($(#[doc = $type_doc:literal])+ $Type:ident { $($(#[doc = $doc:literal])+ $Variant:ident = $word:literal,)+ }) => {
        $(#[doc = $type_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Type {
            $($(#[doc = $doc])+ $Variant,)+
        }

        impl $Type {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),+];

            /// The word that stands for it in the configuration.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $word,)+
                }
            }
        }

        impl Choice for $Type {
            fn word(self) -> &'static str {
                self.name()
            }
        }

        impl fmt::Display for $Type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

choice! {
    /// What a worker does about exchanges and queues when it starts.
    TopologyMode {
        /// Declares them; those that exist must fit.
        Declare = "declare",
        /// Compares: ends if something differs, and waits, not ready, for what is missing.
        Check = "check",
        /// Takes them as they are.
        Off = "off",
    }
}

choice! {
    /// RabbitMQ's type of a queue.
    QueueType {
        /// Replicated, and counts deliveries.
        Quorum = "quorum",
        /// On one node.
        Classic = "classic",
    }
}

choice! {
    /// What becomes of a reply whose queue is gone.
    Unroutable {
        /// It goes to the dead letters.
        DeadLetter = "dead-letter",
        /// It is dropped.
        Discard = "discard",
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Where models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// The CUDA device of this number.
    Cuda(u16),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "cpu" {
            return Ok(Self::Cpu);
        }
        let index = text.strip_prefix("cuda:").ok_or(UnknownDevice)?;
        let device = index.parse().map(Self::Cuda).map_err(|_| UnknownDevice)?;
        // One device has one spelling, in metrics as here: `cuda:+1` and `cuda:01` would be further ones.
        if device.to_string() == text {
            Ok(device)
        } else {
            Err(UnknownDevice)
        }
    }
}

impl Device {
    /// What a key that names a device takes, in words.
    pub const ALLOWED: &'static str = "\"cpu\", or \"cuda:N\" for the NVIDIA GPU of that number, such as \"cuda:0\"";
}

/// The text names no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a device; allowed are cpu and cuda:N")]
pub struct UnknownDevice;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_spelling() {
        for text in ["cpu", "cuda:0", "cuda:65535"] {
            let device: Device = text.parse().unwrap();
            assert_eq!(device.to_string(), text);
        }
        for text in [
            "",
            "CPU",
            "gpu",
            "cuda",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:01",
            "cuda:65536",
            "cuda:0 ",
        ] {
            assert_eq!(text.parse::<Device>(), Err(UnknownDevice), "{text}");
        }
    }
}
